"""Method and fusion at once: every method with its learning rate, Meta-GF with all of its fusion."""

from ray import tune

from raygf.config.run import BATCHNORM, SEGMENTS, RunConfig
from raygf.methods.registry import is_step_method
from raygf.sweeps import Space, settings_of_methods

AUX = {"loss.aux": tune.loguniform(0.01, 1.0)}
FUSION = {
    "fusion.lr": tune.loguniform(0.01, 1.0),
    "fusion.ema": tune.uniform(0.5, 0.99),
    "fusion.segments": tune.choice(SEGMENTS),
    "fusion.normalise": tune.choice(["softmax", "sigmoid"]),
    "fusion.batchnorm": tune.choice(BATCHNORM),
}


def joint(run: RunConfig) -> Space:
    """By the average validation accuracy of the exits; at least as many trials as methods make sense."""
    variants = []
    for settings in settings_of_methods(run):
        name, lr = str(settings["method"]), float(settings["optim.lr"])
        more = {} if is_step_method(name) else AUX
        fusion = FUSION if name == "metagf" else {}
        variants.append({**settings, "optim.lr": tune.loguniform(lr / 3, lr * 3), **more, **fusion})
    return Space(variants=variants, metric="val_accuracy/average", mode="max")
