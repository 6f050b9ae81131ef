"""How a model becomes files and a model again, also where nothing of Headrace is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import headrace.harness_save as saving
import headrace.loader as loader
import pytest

LOADER, SAVING = Path(loader.__file__), Path(saving.__file__)


class Doubler:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def predict(self, frame: list[int]) -> list[int]:
        return [self.factor * value for value in frame]


def times_ten(model: Doubler, frame: list[int]) -> list[int]:
    return [10 * value for value in model.predict(frame)]


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_saved_model_is_itself_again(tmp_path: Path) -> None:
    saving.save(Doubler(2), tmp_path / "model", None)
    loaded = loader.load(tmp_path / "model")
    assert loaded.predict([1, 2]) == [2, 4]
    assert isinstance(loaded.model, Doubler)
    described = json.loads((tmp_path / "model" / "headrace.json").read_text())
    assert described["format"] in ("pickle", "cloudpickle")
    assert described["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_scikit_learn_model_is_saved_by_joblib_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("joblib", reason="comes with MLflow in this environment", exc_type=ImportError)
    from sklearn.dummy import DummyClassifier

    saving.save(DummyClassifier(strategy="most_frequent").fit([[0], [1]], [1, 1]), tmp_path / "model", None)
    assert (tmp_path / "model" / "model.joblib").is_file()
    assert list(loader.load(tmp_path / "model").predict([[5]])) == [1]


def test_a_predict_entry_goes_before_the_models_own(tmp_path: Path) -> None:
    saving.save(Doubler(2), tmp_path / "model", f"{__name__}:times_ten")
    assert loader.load(tmp_path / "model").predict([1]) == [20]


def test_a_saved_model_is_loaded_from_its_files_alone(tmp_path: Path) -> None:
    """As MLflow does it: the loader is a lone file on the path, the author's package is in source/src, nothing else is there."""
    package = tmp_path / "data" / "source" / "src" / "shop"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text(
        "class Model:\n    def __init__(self): self.name = 'shop'\ndef predict(model, frame): return [model.name]\n"
    )
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "headrace_loader.py").write_bytes(LOADER.read_bytes())
    (tmp_path / "code" / "saving.py").write_bytes(SAVING.read_bytes())
    start = f"import sys; sys.path.insert(0, {str(tmp_path / 'code')!r}); import headrace_loader as loader, saving; "
    source = f"sys.path.insert(0, {str(package.parent)!r}); from shop.model import Model; "
    save = f"saving.save(Model(), {str(tmp_path / 'data' / 'model')!r}, 'shop.model:predict')"
    load = f"print(loader._load_pyfunc({str(tmp_path / 'data')!r}).predict(None))"
    for code in (start + source + save, start + load):
        done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    assert done.stdout == "['shop']\n"


def test_the_authors_files_hide_nothing_of_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("")
    loader.put_on_path([tmp_path, tmp_path / "missing"])
    assert sys.path.count(str(tmp_path)) == 1
    assert str(tmp_path / "missing") not in sys.path
    installed = next(index for index, entry in enumerate(sys.path) if entry.endswith("site-packages"))
    standard = next(index for index, entry in enumerate(sys.path) if (Path(entry) / "random.py").is_file())
    assert standard < sys.path.index(str(tmp_path)) < installed


def test_what_cannot_be_saved_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(saving.CannotSave, match="predict"):
        saving.save(object(), tmp_path / "a", None)
    with pytest.raises(saving.CannotSave, match=r"job\.output"):
        saving.save((value for value in "ab"), tmp_path / "b", f"{__name__}:times_ten")
    with pytest.raises(saving.CannotSave, match="wrote nothing"):
        saving.save(None, tmp_path / "c", f"{__name__}:times_ten")


@pytest.mark.parametrize(
    ("format", "error", "advice"),
    [
        ("mlflow", ModuleNotFoundError("No module named 'shop'"), r"log it with code_paths="),
        (
            "pickled",
            AttributeError("Can't get attribute 'Model' on <module '__main__'"),
            "move it into a module of its own",
        ),
        ("pickle", ValueError("not again"), "write it into job.output yourself"),
    ],
)
def test_what_cannot_be_loaded_back_says_what_to_do(tmp_path: Path, format: str, error: Exception, advice: str) -> None:
    saving.describe(tmp_path, {"format": format}, None, None)
    assert advice in str(saving.cannot_load(tmp_path, error))


class Booster(Doubler):
    """As XGBoost's, by its names."""

    def save_model(self, path: str) -> None:
        Path(path).write_text(str(self.factor))


def test_a_class_is_recognised_by_its_names_and_one_that_extends_it_is_pickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Extends(Booster):
        pass

    monkeypatch.setattr(Booster, "__module__", "xgboost.core")
    saving.save(Booster(3), tmp_path / "own", None)
    assert (tmp_path / "own" / "model.ubj").read_text() == "3"
    saving.save(Extends(3), tmp_path / "extends", None)
    assert (tmp_path / "extends" / "model.pkl").exists()
