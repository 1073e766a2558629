"""The table of defaults: every row can be built and says its source, and a run takes what nothing else gives."""

import pytest

from genkernels.train import start_run
from genkernels.train.data.sources import SPECS
from genkernels.train.defaults import DEFAULTS, defaults_of
from genkernels.train.recipes import find_recipe
from genkernels.train.settings import Settings

ROWS = [pytest.param(row, id=f"{row.recipe} {row.data}") for row in DEFAULTS]


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_of_a_model_and_a_data_set_that_there_are_and_has_a_source(row):
    assert row.source and (row.settings or row.model)
    assert row.settings.keys() <= Settings.__dataclass_fields__.keys()
    assert row.data is None or row.data in {spec.partition(":")[0].partition("[")[0] for spec in SPECS}
    size = {"ring": (1, 1), "digits": 8}.get(row.data, 32)
    colours = {"ring": 2, "cifar10": 3}.get(row.data, 1)
    more = {"bounded": False} if row.data == "ring" else {}
    model = find_recipe(row.recipe).build(in_channels=colours, image_size=size, **more, **row.model)
    assert row.model.items() <= model.config.items()


def test_no_two_rows_are_of_the_same():
    assert len({(row.recipe, row.data) for row in DEFAULTS}) == len(DEFAULTS)


def test_a_run_takes_the_row_of_its_data_and_the_command_line_goes_before(tmp_path):
    trainer, _ = start_run("pixelcnn", tmp_path / "a", {"data": "digits"}, {"hidden_channels": 4, "num_layers": 1})
    assert (trainer.settings.batch_size, trainer.settings.learning_rate) == (32, 5e-4)
    trainer, _ = start_run("gan", tmp_path / "b", {"data": "ring", "batch_size": 7}, {"hidden_channels": 8})
    assert (trainer.settings.batch_size, trainer.settings.learning_rate) == (7, 1e-3)
    assert (trainer.model.config["hidden_channels"], trainer.model.config["latent_dim"]) == (8, 16)


def test_a_row_of_one_data_set_goes_before_that_of_all():
    assert defaults_of("pixelrnn", "mnist:somewhere") == (
        {"batch_size": 16, "optimizer": "rmsprop"},
        {"hidden_channels": 16, "num_layers": 7},
    )
    assert defaults_of("pixelrnn", "digits") == ({"optimizer": "rmsprop"}, {})
    assert defaults_of("fvbn", "mnist:somewhere") == ({}, {})


def test_the_command_lists_every_row(capsys):
    pytest.importorskip("typer", reason="the command line needs the extra 'cli'")
    from genkernels.cli.app import run

    assert run(["defaults"]) == 0
    printed = capsys.readouterr().out
    assert all(row.source in printed for row in DEFAULTS) and printed.count("\n") == len(DEFAULTS) + 1
