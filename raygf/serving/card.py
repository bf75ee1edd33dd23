"""What a person should know of a trained classifier before using it, in Markdown."""

import numpy as np

from raygf.evaluation.budgeted import MAY_LOSE, ThresholdTable, exits_taken
from raygf.evaluation.loading import LoadedRun
from raygf.evaluation.tables import count_unit, markdown_table
from raygf.methods.registry import method_title
from raygf.serving.adaptive import AdaptiveClassifier

ROWS = 8
"""Budgets in the table, beside the default."""
CLASSES = 10
"""Classes that are named."""


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
        taken = exits_taken(test.confidence, np.array(table.pick(budget)))
        right = test.hit[taken, np.arange(len(taken))]
        mark = " (default)" if budget == table.default_budget else ""
        accuracies = f"{table.expected_accuracy(budget):.2%}", f"{right.mean():.2%}"
        cost = unit.text(round(budget)), f"{budget / operations[-1]:.0%}{mark}"
        rows.append([*cost, *accuracies, unit.text(round(operations[taken].mean()))])
    titles = ["budget", "of the whole", "accuracy, validation", "accuracy, test", "spent, test"]
    return f"Operations per image in {unit.name}:\n\n" + markdown_table(titles, rows)
