"""Takes a page apart as a reader would who follows it: files to write, Python to run, commands to give, in order."""

import re
import shlex
from typing import NamedTuple

from test_docs import wrong_commands

#: Tasks that `srun` is taken to start, and their variables.
TASKS = 2


class Step(NamedTuple):
    """One thing to do. `language` is that of the fenced block; of a block of commands every command is a step."""

    language: str
    text: str

    @property
    def file(self):
        """The file that a block of TOML says in its first line that it is."""
        named = re.match(r"# (\S+\.toml)\n", self.text)
        assert named, f"a block of TOML begins with a comment that names its file, not with {self.text[:40]!r}"
        return named[1]


def steps(page):
    """The steps of a page."""
    found = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL):
        found += [Step("sh", each) for each in commands(block)] if language == "sh" else [Step(language, block)]
    return found


def commands(block):
    """The commands of a block of shell: continued lines joined, comments dropped, `for` loops unrolled."""
    name, values, body = "", [""], []
    for line in block.replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s+)#\s.*$", "", line).strip()
        if loop := re.fullmatch(r"for (\w+) in (.+); do", line):
            name, values = loop[1], loop[2].split()
        elif line.startswith("done"):
            yield from (each.replace(f"${name}", value) for value in values for each in body)
            name, values, body = "", [""], []
        elif name:
            body.append(line.removesuffix("&").strip())
        elif line:
            yield line


def started(command):
    """The programs that a command starts, as lists of words: what `srun` gives to each of `TASKS` tasks, else itself.

    What follows `torchrun` has passed torchrun's own parser, and stands for one process alone.
    """
    words = shlex.split(command)
    while re.fullmatch(r"\w+=\S*", words[0]):
        words = words[1:]
    if words[0] == "srun":
        assert words[-3:-1] == ["bash", "-c"], command
        variables = ({"SLURM_PROCID": str(task), "SLURM_NTASKS": str(TASKS)} for task in range(TASKS))
        return [each for known in variables for each in started(_filled_in(words[-1], known))]
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        known = get_args_parser().parse_args(words[1:])
        assert known.module, f"{command} does not start a module"
        return [[known.training_script, *known.training_script_args]]
    return [words]


def wrong_options(words):
    """Whether the arguments `words` name a verb or an option that `leaf` has not."""
    return list(wrong_commands(f"`{shlex.join(words)}`"))


def _filled_in(text, variables):
    for name, value in variables.items():
        text = text.replace(f"${name}", value)
    return text
