"""The ImageNet job trains the paper's 5-exit MSDNet on photographs, and images come alike in Ray actors."""

from pathlib import Path

import psutil
import pytest
from made_up_images import CPU, REAL, photographs, write_parquet
from runs import LOCAL, UNTRACKED

from raygf.config.run import DataConfig
from raygf.data.load import load_data

SAMPLE = REAL / "imagenet-sample"
COUNT, CLASSES = 60, 20
LABELS = [row % CLASSES for row in range(COUNT)]
NAMES = [f"n{label:02d}" for label in range(CLASSES)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A Parquet set without test images."""
    folder = tmp_path_factory.mktemp("photographs")
    path = folder / "train-00000.parquet"
    write_parquet(path, photographs(COUNT), LABELS, names=",".join(NAMES), group=10)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same photographs as class folders, the last ones as test images."""
    folder = tmp_path_factory.mktemp("folders")
    for row, file in enumerate(photographs(COUNT)):
        path = folder / ("val" if row >= COUNT - 10 else "train") / NAMES[LABELS[row]] / f"{row}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)
    return folder


def trained(run_job, path, *flags):
    """What two steps a pass on small crops give, in this process."""
    outcome = run_job(
        *("imagenet", "--data.path", str(path), "--data.val", "10", "--data.workers", "1", *flags),
        *("--data.train-limit", "8", "--data.crop", "32", "--data.resize", "36", "--rounds", "1"),
        *("--batch-size", "4", "--eval-batch-size", "10", "--storage.path", "runs", *LOCAL, *UNTRACKED),
    )
    result = outcome.result
    assert "8 training, 10 validation, 10 test images" in " ".join(outcome.err.split())
    assert result["rounds"] == 1 and len(result["test_accuracy"]) == 5
    assert Path(result["checkpoint"]).is_file()
    return result


def test_metagf_on_shards(run_job, shards):
    """On real photographs where there are any."""
    path = SAMPLE if SAMPLE.is_dir() else shards
    result = trained(run_job, path, "--data.source", "shards", "--data.test", "10")
    assert (result["method"], result["training_passes"]) == ("metagf", 6)
    if path == SAMPLE:
        assert [round(count / 1e6, 2) for count in result["parameters"]] == [4.24, 8.77, 13.07, 16.75, 23.96]


def test_recipe_for_sgd_on_class_folders(run_job, folders):
    result = trained(run_job, folders, "--data.source", "imagefolder", "--recipe", "imagenet-msdnet-sgd")
    assert (result["method"], result["training_passes"]) == ("sgd", 1)


def test_workers_of_a_ray_actor_make_the_same_images_and_end_with_it(cluster, shards):
    import ray

    config = DataConfig("shards", str(shards), test=10, val=10, crop=32, resize=36, workers=2, train_limit=40)
    data = load_data(config, 0)

    class Reader:
        def read(self, data, compute):
            """The bits of an epoch, and the workers that made it; they live as long as what is opened."""
            self.batches = data.open(compute, 8, 8)
            made = [i.numpy().tobytes() + y.numpy().tobytes() for i, y in self.batches.train(0, "exit", 1, 2)]
            return made, [child.pid for child in psutil.Process().children(recursive=True)]

    actor = ray.remote(Reader).options(num_cpus=1).remote()
    made, workers = ray.get(actor.read.remote(ray.put(data), CPU), timeout=120)
    assert len(made) == 5 and made == Reader().read(data, CPU)[0]
    assert len(workers) == 2 and all(psutil.pid_exists(pid) for pid in workers)
    processes = [psutil.Process(pid) for pid in workers]
    ray.kill(actor)
    gone, alive = psutil.wait_procs(processes, timeout=30)
    assert len(gone) == 2 and not alive
