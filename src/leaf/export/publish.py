"""Publishing: exactly the files of a model that belong on a hub, checked, with nothing of this machine in them.

    publish(Path("runs/demo/student-2l"), "me/tiny-queries", dry_run=Path("upload"))   # writes the folder instead
    publish(Path("runs/demo/student-2l"), "me/tiny-queries", private=True)

A student goes with its ONNX files, its space and its card; so do both forms of the asymmetric package. What the run
knows (`manifest.json`, `metrics.jsonl`) stays behind: the card says what of it matters. `onnx/manifest.json` goes
along, for it is the record behind the card's table. In the card, the folder becomes the name on the hub; a teacher or
backbone that was a folder is shown by its last part.
"""

import json
import mmap
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leaf.encoder import Encoder
from leaf.errors import LeafError
from leaf.files import write_json, write_text
from leaf.light import is_light, load_light, read_teacher
from leaf.loading import load
from leaf.models import hub_id, without_folders
from leaf.progress import say
from leaf.runtime import OnnxEncoder
from leaf.space import CANARIES_FILE, SPACE_FILE, Space, verify

CARD = "README.md"
#: Files at the top of a model folder besides those of its first module.
TOP = (CARD, "modules.json", "router_config.json", "asymmetric.json", "config_sentence_transformers.json")
TOP_PATTERNS = (*TOP, SPACE_FILE, CANARIES_FILE, "LICENSE*", "LICENCE*", "NOTICE*")
#: The files of a module: settings, weights (`model*`: and their shards) and tokenizer (`*.model`: SentencePiece).
MODULE_PATTERNS = (
    *("config.json", "sentence_bert_config.json", "model*.safetensors*", "*.model", "*.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt"),
)
#: Settings whose values may be paths; a tokenizer's vocabulary and the canaries are texts and stay as they are.
SETTINGS = ("config.json", "tokenizer_config.json", "sentence_bert_config.json", "manifest.json", "asymmetric.json")
#: JSON of texts and tokens, in which a path is a word like any other.
VOCABULARIES = (SPACE_FILE, "tokenizer.json", "vocab.json")
#: Bytes: what browsers and hubs take as one file.
LARGEST_FILE = 5 * 10**9
#: Characters of OWNER/NAME.
LONGEST_NAME = 96
FRONT_MATTER = ("library_name", "pipeline_tag", "tags")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
#: The card's last line says by which path its snippets call the model.
_PATH_NOTE = re.compile(r"<!-- path: (.*?) -->\n?")
_CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)
_ABSOLUTE = re.compile(r"(?<![\w.:/\\-])(?:/[\w@+.-]+){2,}|(?<![\w/\\])[A-Za-z]:\\[\w@+.\\-]+")


@dataclass(frozen=True)
class Upload:
    """What was published, or would be."""

    repo_id: str
    files: Mapping[str, int]
    """Path in the repository → bytes."""
    folder: Path | None
    """Where a dry run has put the files."""
    url: str | None
    """Where the hub shows them; None after a dry run."""

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(self.files.values())


def publish(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    branch: str | None = None,
    dry_run: Path | None = None,
    token: str | None = None,
) -> Upload:
    """Uploads the model in `folder` to `repo_id` (OWNER/NAME) on the Hugging Face hub, or writes it into `dry_run`.

    `branch` is made where it is missing; None is the main one. `token` defaults to the one that `hf auth login` or
    HF_TOKEN left, and is never printed. Files under `onnx/` that an earlier upload left are removed: they would be of
    another student. Raises `LeafError` where the model, its card or an ONNX file does not hold up, where a file is
    5 GB or more, and where the hub does not take it.
    """
    _check_name(repo_id)
    if dry_run is not None and dry_run.exists() and any(dry_run.iterdir()):
        raise LeafError(f"{dry_run} is not empty; give --dry-run a new folder")
    files = hub_files(folder)
    check_card(folder / CARD)
    _check_sizes(folder, files)
    _check_space(folder, files)
    with tempfile.TemporaryDirectory(prefix="leaf-publish-") as temporary:
        stage = dry_run or Path(temporary)
        for name in files:
            _stage(folder / name, stage / name, repo_id, link=dry_run is None)
        _check_paths(folder, stage, files)
        sizes = {name: (stage / name).stat().st_size for name in files}
        for name, size in sizes.items():
            say(f"{_readable(size):>9}  {name}")
        say(f"{_readable(sum(sizes.values())):>9}  in {len(sizes)} files for {repo_id}")
        url = None if dry_run is not None else _push(stage, repo_id, private, branch, token)
    return Upload(repo_id, sizes, dry_run, url)


def hub_files(folder: Path) -> list[str]:
    """The files of a student or package that belong on a hub, as paths inside `folder`, in order.

    Raises `LeafError` for a folder that is no model of leaf's, or whose ONNX export is not complete.
    """
    if not (folder / "modules.json").is_file() or not (folder / SPACE_FILE).is_file():
        raise LeafError(
            f"{folder} is no student and no package (no modules.json with {SPACE_FILE}); give runs/NAME/student-…"
        )
    found = {path for pattern in (*TOP_PATTERNS, *MODULE_PATTERNS) for path in folder.glob(pattern)}
    for module in _module_folders(folder):
        found |= {path for path in (folder / module).rglob("*") if not path.name.startswith(".")}
    if (folder / "onnx").is_dir():
        try:
            exported = json.loads((folder / "onnx" / "manifest.json").read_text(encoding="utf-8"))["files"]
            found |= {folder / "onnx" / each["file"] for each in exported.values()} | {
                folder / "onnx" / "manifest.json"
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LeafError(
                f"{folder / 'onnx'} is not complete (manifest.json: {error}); run `leaf export` again"
            ) from error
    names = sorted(path.relative_to(folder).as_posix() for path in found if not path.is_dir())
    lost = [name for name in names if not (folder / name).is_file()]
    if lost:
        raise LeafError(f"{folder / lost[0]} is missing; run `leaf export` again")
    return sorted(names, key=lambda name: ("/" in name, name))


def module_files(folder: Path) -> list[Path]:
    """The files of a first module that lies at the top of a model folder: weights, tokenizer and their settings."""
    return sorted({path for pattern in MODULE_PATTERNS for path in folder.glob(pattern) if path.is_file()})


def check_card(path: Path) -> None:
    """Raises `LeafError` unless there is a finished model card with front matter that a hub reads."""
    from huggingface_hub import ModelCard

    if not path.is_file():
        raise LeafError(f"{path.parent} has no model card ({path.name}); `leaf report` writes one")
    text = path.read_text(encoding="utf-8")
    try:
        data: Any = ModelCard(text).data
    except Exception as error:  # YAML's errors, and the hub's own checks of fields
        reason = " ".join(str(error).split())[:200]
        raise LeafError(
            f"{path}: the front matter is not what a hub reads ({reason}); correct it between the ---"
        ) from error
    missing = [key for key in FRONT_MATTER if not getattr(data, key, None)]
    if missing:
        raise LeafError(f"{path}: the front matter has no {missing[0]}; `leaf report` writes a whole card")
    gap = re.search(r"\[More Information Needed\]|\{\{.*?\}\}|\{%.*?%\}", text)
    if gap or "\n## Usage\n" not in text:
        raise LeafError(
            f"{path} is not finished ({gap[0] if gap else 'no section Usage'}); complete it before publishing"
        )


def published_card(text: str, repo_id: str) -> str:
    """The card as it reads on the hub: its snippets call the model `repo_id`, and no path of this machine is left."""
    note = _PATH_NOTE.search(text)
    text = _PATH_NOTE.sub("", text).rstrip("\n") + "\n"
    if note:
        here = note[1]
        text = re.sub("  (#|//) this folder, or its id on a hub", "", text)
        download = f'from huggingface_hub import snapshot_download\n\nfolder = snapshot_download("{repo_id}")'
        text = re.sub(rf'^folder = "{re.escape(here)}".*$', download, text, flags=re.MULTILINE)
        name = re.compile(rf"(?<![\w./-]){re.escape(here)}(?![\w-])")
        text = _CODE.sub(lambda code: name.sub(repo_id, code[0]), text)
    return _ABSOLUTE.sub(lambda path: without_folders(path[0]) if _is_local(path[0]) else path[0], text)


def _check_name(repo_id: str) -> None:
    if not _NAME.fullmatch(repo_id) or len(repo_id) > LONGEST_NAME:
        raise LeafError(f"'{repo_id}' is no name that a hub takes; give OWNER/NAME, letters, digits, '-', '_' and '.'")


def _module_folders(folder: Path) -> list[str]:
    """The sub-folders that hold modules: those of the pipeline, and those that a router routes to."""
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    paths = [module["path"] for module in modules if module["path"]]
    if (folder / "router_config.json").is_file():
        paths += json.loads((folder / "router_config.json").read_text(encoding="utf-8"))["types"]
    return paths


def _check_sizes(folder: Path, files: list[str]) -> None:
    for name in files:
        if (size := (folder / name).stat().st_size) >= LARGEST_FILE:
            raise LeafError(
                f"{folder / name} has {_readable(size)}; a hub serves files below {_readable(LARGEST_FILE)}"
            )


def _check_space(folder: Path, files: list[str]) -> None:
    """The model, and each of its ONNX files, must land its canaries."""
    if is_light(folder) and not (hub_id(model := read_teacher(folder)["model"]) or model.startswith("package:")):
        raise LeafError(
            f"{folder} fetches its teacher from {model}, a folder that nobody else has; export it again with the "
            "teacher's id on a hub, or without --light"
        )
    space = Space.load(folder)
    for name in ("", *(name for name in files if name.endswith(".onnx"))):
        say(f"verifying {folder / name}")
        verdict = verify(_open(folder, name), space)
        if not verdict.in_space:
            raise LeafError(
                f"{folder / name} is outside its space (canary ε {verdict.error:.4f}, saved {verdict.expected:.4f}); "
                "it was not published: export it again"
            )


def _open(folder: Path, name: str) -> Encoder:
    """The model in `folder`, or the ONNX file `name` of it."""
    if name:
        return OnnxEncoder(folder / name)
    return load_light(folder) if is_light(folder) else load(folder)


def _stage(source: Path, target: Path, repo_id: str, *, link: bool) -> None:
    """Puts one file where it is published from; what names this machine is written anew."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name == CARD:
        write_text(target, published_card(source.read_text(encoding="utf-8"), repo_id))
    elif source.name == SPACE_FILE:
        space = Space.load(source.parent)
        shown = {key: without_folders(value) if key == "model" else value for key, value in space.teacher.items()}
        replace(space, teacher=shown).save(target.parent)
    elif source.name == CANARIES_FILE:
        return  # saved with its space
    elif source.name in SETTINGS:
        write_json(target, _without_paths(json.loads(source.read_text(encoding="utf-8"))))
    elif not (link and _linked(source, target)):
        shutil.copyfile(source, target)


def _linked(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another file system, or one without links
        return False
    return True


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    return without_folders(value) if isinstance(value, str) and _is_local(value) else value


def _is_local(text: str) -> bool:
    """Whether `text` is an absolute path that this machine could have, unlike `/v1/embeddings`."""
    parts = Path(text).parts
    return bool(re.match(r"[A-Za-z]:\\", text)) or (len(parts) > 2 and parts[0] == "/" and Path(*parts[:2]).exists())


def _check_paths(folder: Path, stage: Path, files: list[str]) -> None:
    """Nothing that is published may name a folder of this machine; an ONNX graph can, in its nodes' stack traces."""
    machine = {str(path) for path in (Path.home(), Path.cwd(), folder.resolve().parent, Path(sys.prefix))} - {"/"}
    needles = sorted(f"{path.rstrip('/')}/".encode() for path in machine)
    for name in files:
        if not name.endswith((".onnx", ".json", ".md")) or name.endswith(VOCABULARIES):
            continue
        with open(stage / name, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = next((needle for needle in needles if content.find(needle) >= 0), None)
        if found:
            raise LeafError(
                f"{folder / name} names a folder of this machine ({found.decode()}…); remove it, or export again"
            )


def _push(stage: Path, repo_id: str, private: bool, branch: str | None, token: str | None) -> str:
    from huggingface_hub import HfApi, get_token

    token = token or get_token()
    if not token:
        raise LeafError(
            f"no token for the hub, so nothing can be written to {repo_id}; `hf auth login`, or set HF_TOKEN"
        )
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        if private and not api.repo_info(repo_id, repo_type="model").private:
            raise LeafError(f"{repo_id} exists and is public; make it private on the hub, or leave out --private")
        if branch:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            repo_type="model",
            folder_path=stage,
            revision=branch,
            commit_message="Upload by leaf",
            delete_patterns=["onnx/*"],
        )
    except LeafError:
        raise
    except Exception as error:  # the HTTP client changes with the release, and its errors have no public base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].replace(token, "…")
        raise LeafError(
            f"the hub did not take {repo_id} ({reason}); check the connection and that the token may write there"
        ) from None  # the chain could show the token
    return str(getattr(done, "commit_url", done))


def _readable(size: int) -> str:
    """`61874144` → `61.9 MB`."""
    for unit, bytes_ in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_:
            return f"{size / bytes_:.1f} {unit}"
    return f"{size} B"
