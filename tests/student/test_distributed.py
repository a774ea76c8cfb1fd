"""Two machines that train together, as two torchrun agents of one process each."""

import json
import socket
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from leaf.errors import LeafError
from leaf.student.distributed import join

with join("cpu") as (world, device):
    values = torch.tensor([1.0, 10.0]) * (world.rank + 1)
    world.mean([values])
    copied = torch.full((2,), float(world.rank + 5))
    world.copy_from_main([copied])
    said = {"size": world.size, "rank": world.rank, "mean": values.tolist(), "copied": copied.tolist()}
    said["any"] = [world.any(world.rank == 1, device), world.any(False, device)]
    world.check_shared(Path(sys.argv[1]), device)
    try:
        world.check_shared(Path(sys.argv[2]), device)
    except LeafError as error:
        said["error"] = str(error)
    Path(sys.argv[3]).write_text(json.dumps(said))
"""


def test_two_machines_agree_and_each_is_told_where_they_share_no_folder(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
    agents = []
    for rank in range(2):
        (tmp_path / f"own-{rank}").mkdir()
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
            *("--node-rank", str(rank), "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "test"),
            *(
                str(tmp_path / "script.py"),
                str(tmp_path),
                str(tmp_path / f"own-{rank}"),
                str(tmp_path / f"{rank}.json"),
            ),
        ]
        agents.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    printed = [agent.communicate(timeout=120)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], printed[0][-2000:] + printed[1][-2000:]
    said = sorted(
        (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)), key=lambda each: each["rank"]
    )
    for rank, each in enumerate(said):
        # By hand: the mean of (1, 10) and (2, 20); the main process has 0 + 5.
        assert (each["size"], each["rank"]) == (2, rank)
        assert each["mean"] == pytest.approx([1.5, 15.0])
        assert each["copied"] == [5.0, 5.0]
        assert each["any"] == [True, False]
        assert "is not the same folder for all 2 processes; machines that train together need an --out" in each["error"]
    assert not list(tmp_path.glob("**/.seen-*"))
