"""What a person should know of a trained classifier before using it, in Markdown."""

import numpy as np
import yaml

from raygf.config.fields import to_dict
from raygf.evaluation.budgeted import MAY_LOSE, ThresholdTable, exits_taken
from raygf.evaluation.loading import LoadedRun
from raygf.evaluation.report import Files, anytime_tables, comparison_files, run_files
from raygf.evaluation.results import RunResults, evaluate_run, group_runs
from raygf.evaluation.tables import count_unit, markdown_table, to_markdown
from raygf.methods.registry import method_title
from raygf.serving.adaptive import AdaptiveClassifier

ROWS = 8
"""Budgets in the table, beside the default."""
CLASSES = 10
"""Classes that are named."""
CARD = "README.md"
_FIGURES = {
    "budgeted.png": "Test accuracy over average operations per image",
    "accuracy.png": "Accuracy over the rounds of training",
}
_USE = """\
```python
import raygf

model = raygf.AdaptiveClassifier.load("this-folder")
model.predict(images, budget=model.default_budget)  # class, probability, exit, operations
```

`model.safetensors` has the weights under the names of the PyTorch network's state dict, `model.json` what
else is to be known: the network, its classes, the operations up to every exit, the normalisation of images,
and confidence thresholds by budget. An image leaves at the first exit that is sure enough."""


def card_files(run: LoadedRun, classifier: AdaptiveClassifier) -> Files:
    """The card as a page of the Hugging Face Hub, with its figures.

    Raises DataError: the run has no test images.
    """
    results = evaluate_run(run, with_importance=False, with_noise=False)
    groups = group_runs([results])
    drawn = {**comparison_files(groups), **run_files(results)}
    shown = {name: title for name, title in _FIGURES.items() if name in drawn}
    header = yaml.safe_dump(_header(run, results), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{header}---",
        f"# {run.config.model.name} on {run.dataset.name}, {classifier.exits} exits",
        model_card(run, classifier),
        "## Accuracy of every exit, for all images",
        to_markdown(anytime_tables(groups)[0]).strip(),
        *(f"![{title}](figures/{name})" for name, title in shown.items()),
        "## Use",
        _USE,
    ]
    return {CARD: "\n\n".join(parts) + "\n", **{f"figures/{name}": drawn[name] for name in shown}}


def _header(run: LoadedRun, results: RunResults) -> dict[str, object]:
    """What the Hub reads."""
    accuracies = [
        {"type": "accuracy", "name": f"test accuracy, exit {number}", "value": round(accuracy, 6)}
        for number, accuracy in enumerate(results.top1, start=1)
    ]
    config = to_dict(run.config)  # plain values
    task = {"type": "image-classification"}
    data = {"name": run.dataset.name, "type": config["data"]["source"]}
    return {
        "library_name": "raygf",
        "pipeline_tag": task["type"],
        "tags": ["early-exit", "multi-exit", "raygf", config["method"]],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": run.config.storage.name or run.config.model.name,
                "results": [{"task": task, "dataset": data, "metrics": accuracies}],
            }
        ],
    }


def model_card(run: LoadedRun, classifier: AdaptiveClassifier) -> str:
    """What goes in and comes out, what is spent by default, and the accuracy to expect of a budget."""
    spec, names = classifier.task.input, classifier.task.class_names
    more = " …" if len(names) > CLASSES else ""
    lines = [
        f"{run.config.model.name} with {classifier.exits} exits, trained on {run.dataset.name} "
        f"with {method_title(run.config.method)}.",
        f"Input: uint8 (N, {spec.channels}, {spec.height}, {spec.width}). "
        f"{len(names)} classes: {', '.join(names[:CLASSES])}{more}.",
        default_line(classifier),
    ]
    if classifier.table is not None:
        lines[-1] += f" Images leave early by {classifier.table.policy}."
        lines.append(_budgets(classifier.table, run, classifier))
    return "\n\n".join(lines)


def default_line(classifier: AdaptiveClassifier) -> str:
    """A sentence on what is spent where no budget is given."""
    budget, whole = classifier.default_budget, classifier.operations[-1]
    text = f"Without a budget, an image may cost {budget:.0f} operations on average, "
    if budget == whole:
        return text + "those of the whole network: nothing cheaper is known to be as accurate."
    return text + (
        f"{budget / whole:.0%} of the whole network's: the least that loses at most "
        f"{100 * MAY_LOSE:g} percentage points of accuracy on the validation images."
    )


def _budgets(table: ThresholdTable, run: LoadedRun, classifier: AdaptiveClassifier) -> str:
    """The table budget → accuracy, from the first exit alone to the whole network."""
    test, operations = run.outputs("test"), np.array(classifier.operations)
    spread = np.linspace(0, len(table.operations) - 1, ROWS).round().astype(int)
    unit, rows = count_unit(classifier.operations), []
    for budget in np.unique([*table.operations[spread], table.default_budget]).tolist():
        taken = exits_taken(test.score(table.policy), np.array(table.pick(budget)))
        right = test.hit[taken, np.arange(len(taken))]
        mark = " (default)" if budget == table.default_budget else ""
        accuracies = f"{table.expected_accuracy(budget):.2%}", f"{right.mean():.2%}"
        cost = unit.text(round(budget)), f"{budget / operations[-1]:.0%}{mark}"
        rows.append([*cost, *accuracies, unit.text(round(operations[taken].mean()))])
    titles = ["budget", "of the whole", "accuracy, validation", "accuracy, test", "spent, test"]
    return f"Operations per image in {unit.name}:\n\n" + markdown_table(titles, rows)
