"""The promise that a query side needs three packages: an environment with nothing else encodes the same vectors."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import leaf
from leaf.runtime import OnnxEncoder
from tiny import sentences

#: All that `leaf.runtime` may need, as installed folders; `numpy.libs` is where wheels keep numpy's own libraries.
PACKAGES = ("numpy", "numpy.libs", "onnxruntime", "tokenizers")
ABSENT = ("torch", "transformers", "sentence_transformers", "pydantic", "huggingface_hub", "openvino", "safetensors")
#: CPU seconds that `import leaf.runtime` and OnnxEncoder may take. Measured 0.1 to 0.2, nearly all of it numpy; twice
#: the promised 0.3 for slower machines. CPU time, and the least of three, because a busy machine stretches the wall's.
IMPORT_SECONDS = 0.6

SCRIPT = """
import json, sys, time
packages, model, texts, out, absent = json.loads(sys.argv[1])
sys.path.append(packages)
before, began = set(sys.modules), time.process_time()
import leaf.runtime
light = sorted(set(sys.modules) - before)
from leaf.runtime import OnnxEncoder
seconds = time.process_time() - began
import importlib.util
found = [name for name in absent if importlib.util.find_spec(name)]
encoder = OnnxEncoder(model)
import numpy
numpy.save(out, [encoder.encode_query(texts), encoder.encode_document(texts)])
loaded = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(json.dumps({"seconds": seconds, "light": light, "found": found, "loaded": sorted(loaded)}))
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the query side needs, and nothing else of what is installed."""
    folder = tmp_path_factory.mktemp("packages")
    installed = Path(np.__file__).parent.parent
    (folder / "leaf").symlink_to(Path(leaf.__file__).parent)
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        source = Path(spec.origin).parent if spec and spec.origin else installed / package
        if source.is_dir():
            (folder / package).symlink_to(source)
    return folder


def run(packages: Path, model: Path, texts: list[str], out: Path) -> dict:
    # -I -S: no PYTHONPATH, no user folder, no site-packages; the standard library is all that is left.
    asked = json.dumps([str(packages), str(model), texts, str(out), ABSENT])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", SCRIPT, asked], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_three_packages_are_enough_and_answer_the_same(packages, table_folder, tmp_path):
    texts = [*sentences(20, seed=2), "", "ÀÉÎ 漢字"]
    heard = run(packages, table_folder, texts, tmp_path / "vectors.npy")
    assert heard["found"] == []
    assert set(heard["loaded"]) - {"__main__"} <= {"leaf", "numpy", "onnxruntime", "tokenizers"}
    here = OnnxEncoder(table_folder)
    expected = [here.encode_query(texts), here.encode_document(texts)]
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, atol=1e-6)


def test_importing_the_runtime_is_quick(packages, table_folder, tmp_path):
    heard = [run(packages, table_folder, ["babe"], tmp_path / "vectors.npy") for _ in range(3)]
    assert min(each["seconds"] for each in heard) < IMPORT_SECONDS
    # Until a name is asked for, nothing but the standard library is there.
    assert {name.partition(".")[0] for name in heard[0]["light"]} - set(sys.stdlib_module_names) == {"leaf"}


def test_an_environment_without_them_fails(tmp_path, table_folder):
    """The isolation holds: nothing of this process's environment leaks into the clean one."""
    (tmp_path / "leaf").symlink_to(Path(leaf.__file__).parent)
    with pytest.raises(AssertionError, match="No module named 'numpy'"):
        run(tmp_path, table_folder, ["babe"], tmp_path / "vectors.npy")
