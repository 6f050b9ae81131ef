"""A standard MLflow pyfunc model composed around a bundle's files: nothing of the author's is imported, unpickled or run."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from mlflow.models import Model, ModelSignature

from shared.errors import Refused

LOADER = "headrace_loader"
_TYPES = {"long", "integer", "double", "float", "string", "boolean", "datetime", "binary"}
_DTYPE = re.compile(r"u?int(8|16|32|64)|float(16|32|64)|bool")
_MOST_DIMENSIONS = 16
_FRAME = {"type": "dataframe", "pandas_orient": "split"}
_ARRAY = {"type": "ndarray"}
LOGGED = "mlflow"
"""Where a bundle holds a model that a script logged to MLflow, below model/."""
_PRIVATE = ("run_id", "model_id", "artifact_path", "model_uuid")
_MOST_BYTES = 1_000_000
_CONDA = """\
name: headrace
channels:
- conda-forge
dependencies:
- python={python}
- pip
- pip:
  - -r requirements.txt
"""
_VIRTUALENV = """\
python: {python}
build_dependencies:
- pip
dependencies:
- -r requirements.txt
"""
_NAMESPACE = uuid.UUID("7b0b3b3e-3c0d-5a52-9a39-0d3e6f2d8f11")


def compose(
    bundle_dir: Path, into: Path, *, model: str, run: int, created_at: datetime, python: str, sample: str | None = None
) -> None:
    """Compose the model directory that MLflow gets and consumers download; `into` is made anew.

    The same arguments give the same bytes, so that a repeated registration has the same digest. `python` is the version that trained
    it (`3.11.7`). Raises `Refused` (`invalid_bundle`) where the bundle's own descriptions are wrong.
    """
    shutil.rmtree(into, ignore_errors=True)
    metadata = {"headrace.model": model, "headrace.run": str(run)}
    metadata |= {"headrace.sample": sample} if sample is not None else {}
    if (bundle_dir / "model" / LOGGED / "MLmodel").exists():
        shutil.copytree(bundle_dir / "model" / LOGGED, into, symlinks=True)
        _readdress(into / "MLmodel", metadata)
        return
    into.mkdir(parents=True)
    for part in ("model", "source"):
        if (bundle_dir / part).exists():  # a store of files knows no empty directory
            shutil.copytree(bundle_dir / part, into / "data" / part, symlinks=True)
    (into / "code").mkdir()
    shutil.copyfile(bundle_dir / "code" / f"{LOADER}.py", into / "code" / f"{LOADER}.py")
    shutil.copyfile(bundle_dir / "requirements.txt", into / "requirements.txt")
    _write_environments(into, python)
    described = Model(
        utc_time_created=created_at.astimezone(UTC).replace(tzinfo=None),
        model_uuid=uuid.uuid5(_NAMESPACE, f"{model}/{run}").hex,
        signature=_signature(bundle_dir / "signature.json"),
        saved_input_example_info=_copy_example(bundle_dir / "input_example.json", into),
        metadata=metadata,
    )
    # the names are those of mlflow.pyfunc, which is not imported for them: it brings every flavour's types along
    described.add_flavor(
        "python_function",
        loader_module=LOADER,
        code="code",
        data="data",
        env={"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
        python_version=python,
    )
    described.save(str(into / "MLmodel"))


def _readdress(path: Path, metadata: dict[str, str]) -> None:
    """A model that the author's script logged ships as it is, but for the ids and places of the store that it was logged to."""
    try:
        with path.open("rb") as stream:
            found = yaml.safe_load(stream.read(_MOST_BYTES))
        if "python_function" not in found["flavors"]:
            raise ValueError("it has no python_function flavour, by which MLflow serves it")
        kept = {key: value for key, value in found.items() if key not in _PRIVATE}
        kept["metadata"] = {**(found.get("metadata") or {}), **metadata}
        path.write_text(yaml.safe_dump(kept, allow_unicode=True))
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"invalid_bundle: the MLmodel that was logged is not as MLflow writes it: {error}") from error


def _write_environments(into: Path, python: str) -> None:
    """Both point at the locked requirements, hashes and all, as MLflow's own writers do."""
    if not re.fullmatch(r"3\.[0-9]{1,2}(\.[0-9]{1,2})?", python):
        raise Refused(f"invalid_bundle: {python!r} is no version of Python")
    (into / "conda.yaml").write_text(_CONDA.format(python=python))
    (into / "python_env.yaml").write_text(_VIRTUALENV.format(python=python))


def _signature(path: Path) -> ModelSignature | None:
    if not path.exists():
        return None
    try:
        columns = json.loads(path.read_bytes())
        sides = {
            side: json.dumps([_column(one) for one in columns[side]])
            for side in ("inputs", "outputs")
            if columns.get(side)
        }
        return ModelSignature.from_dict(sides) if sides else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"invalid_bundle: signature.json is not of the documented form: {error}") from error


def _column(one: dict[str, Any]) -> dict[str, Any]:
    """Rebuilt from what is known, so that nothing else of the author's reaches MLflow's parser."""
    named = {"name": str(one["name"])} if one.get("name") else {}
    if one["type"] == "tensor":
        return {"type": "tensor", "tensor-spec": _tensor(one["dtype"], one["shape"]), **named}
    if one["type"] not in _TYPES:
        raise ValueError(f"{one['type']!r} is no column type; known are tensor, {', '.join(sorted(_TYPES))}")
    return {"type": one["type"], "required": one.get("required") is not False, **named}


def _tensor(dtype: str, shape: list[int]) -> dict[str, Any]:
    if not _DTYPE.fullmatch(dtype):
        raise ValueError(f"{dtype[:40]!r} is no type of an array's numbers")
    if not 0 < len(shape) <= _MOST_DIMENSIONS or not all(type(size) is int and size >= -1 for size in shape):
        raise ValueError(f"{str(shape)[:80]} is no shape: -1 for the rows, then whole numbers")
    return {"dtype": dtype, "shape": shape}


def _copy_example(path: Path, into: Path) -> dict[str, str] | None:
    """The example twice: as it is, and as the body of a request to `mlflow models serve`."""
    if not path.exists():
        return None
    try:
        example = json.loads(path.read_bytes())
        if "inputs" in example:
            kept: object = list(example["inputs"])
            served, kind = {"inputs": kept}, _ARRAY
        else:
            kept = {"columns": list(example["columns"]), "data": list(example["data"])}
            served, kind = {"dataframe_split": kept}, _FRAME
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"invalid_bundle: input_example.json is not of the documented form: {error}") from error
    (into / "input_example.json").write_text(json.dumps(kept))
    (into / "serving_input_example.json").write_text(json.dumps(served))
    return {"artifact_path": "input_example.json", "serving_input_path": "serving_input_example.json", **kind}
