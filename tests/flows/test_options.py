"""The command line is a promise: scripts name its options and rely on their defaults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from flows.cli.app import make_app
from flows.cli.options import options_of, parameters_from
from flows.loop_parameters import RetrainParameters
from infra.problems import checked
from tests.flows.command import refused

FROZEN = Path(__file__).with_name("command_line.txt")
LOOP = "retrain --labelled l --unlabelled u --output o"


def described(command: Any, path: str = "") -> Iterator[str]:
    """One line for each parameter of each command: its names, its default, the variable that sets it."""
    for name, each in sorted(getattr(command, "commands", {}).items()):
        yield from described(each, f"{path}{name} ")
    for each in command.params if path else ():
        names = "/".join([*each.opts, *each.secondary_opts])
        default = "required" if each.required else "" if each.default in (None, [], ()) else str(each.default)
        takes = "flag" if getattr(each, "is_flag", False) else "values" if each.multiple else "value"
        yield " ".join(f"{path}{names} {takes} {default} {each.envvar or ''}".split())


def test_names_and_defaults_of_all_options_are_those_that_were_published() -> None:
    assert sorted(described(get_command(make_app()))) == sorted(FROZEN.read_text("utf-8").splitlines())


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            "train a b --steps 0 --alpha much",
            "--steps: must be at least 1, got '0'; --alpha: must be a number, got 'much'",
        ),
        ("digitscape a --size 1", "--size: must be like 160 or 120x160, got '1'"),
        ("train a b --name a/b", "--name: must be like street-signs_2, got 'a/b'"),
        ("train a b --rate-scale x", "--rate-scale 'x' is not PART=FACTOR for example --rate-scale backbone=0.1"),
        ("train s3://k:v@bucket/a b", "labelled: carries credentials; put them into AWS_ACCESS_KEY_ID"),
        (f"{LOOP} --tta vflip", "--tta: must be 'hflip', '0.75x' or '1.25x', got 'vflip'"),
        (
            f"{LOOP} --task instanc",
            "--task: there is no kind of model 'instanc'; kinds: detection, instance, keypoints, panoptic, ",
        ),
        (f"{LOOP} --calibration none", "--calibration: must be 'holdout' or 'crossfit', got 'none'"),
        (f"{LOOP} --rounds 9", "9 rounds need as many looks at the gate set"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_option_and_all_of_them_at_once(words: str, problem: str) -> None:
    assert problem in refused(2, *words.split())


def test_what_may_be_repeated_arrives_whole_and_what_is_not_given_is_the_models_default() -> None:
    given = {each.name: each.default for each in options_of(RetrainParameters)}
    given |= {"labelled": "l", "unlabelled": "u", "output": "o", "tta": ["hflip", "0.75x"]}
    plain = checked(RetrainParameters, labelled="l", unlabelled="u", output="o", tta=("hflip", "0.75x"))
    assert parameters_from(RetrainParameters, given) == plain
    assert parameters_from(RetrainParameters, {**given, "shares": ["L=0.5", "G=0.5"]}).shares == {
        "train": 0.5,
        "gate": 0.5,
    }
