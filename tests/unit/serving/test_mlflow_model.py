"""What MLflow is told of a classifier: its signature, its answers as a table, the code that loads it."""

from raygf.serving.mlflow_model import copy_code


def test_code_of_ones_own_is_copied_and_packages_are_named(tmp_path, monkeypatch):
    own, code = tmp_path / "own", tmp_path / "code"
    (own / "mine_parts").mkdir(parents=True)
    for name, text in {
        "mine_net.py": "import mine_parts.blocks, not_there_at_all\n\ndef make(spec):\n    import pandas",
        "mine_parts/blocks.py": "from .more import x\nfrom raygf.models.msdnet import MSDNet\nimport PIL, os",
        "mine_parts/more.py": "import mine_net",
        "mine_parts/template.py": "{{ not Python }}",
        "mine_parts/weights.bin": "",
        "other.py": "",
    }.items():
        (own / name).write_text(text)
    monkeypatch.syspath_prepend(own)
    assert copy_code("mine_net:make", code) == {"pandas", "pillow"}
    assert {path.name for path in code.glob("*")} == {"raygf", "mine_net.py", "mine_parts"}
    assert {path.name for path in code.glob("mine*/*")} == {"blocks.py", "more.py", "template.py"}
    assert (code / "raygf" / "serving" / "mlflow_model.py").exists()
    assert copy_code("msdnet", tmp_path / "plain") == set()
