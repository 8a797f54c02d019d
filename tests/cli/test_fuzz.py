"""Command lines made at random end with right results or in one sentence, and leave their inputs alone."""

import pytest
from fuzz import World, as_process, fuzz


@pytest.mark.parametrize("seed", range(4))
def test_random_command_lines(tmp_path, seed):
    for line, _, err, wrong in fuzz(World(tmp_path / "world", seed), 15):
        assert not wrong, (wrong, line, err[-500:])


@pytest.mark.slow
def test_random_command_lines_as_processes(tmp_path):
    for line, _, err, wrong in fuzz(World(tmp_path / "world", 99), 6, as_process):
        assert not wrong, (wrong, line, err[-500:])
