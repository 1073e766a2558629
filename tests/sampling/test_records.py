"""Records of a packed program cross into the native executors by the names of their fields, whatever their order."""

import pytest
import torch
from helpers import cuda_emulated
from helpers.sampler_cases import CASES, program_of, random_images

from genkernels import backends, sampling
from genkernels.sampling.executors import cpu_packing, cuda_packing
from genkernels.sampling.executors.records import Records

pytestmark = [
    pytest.mark.skipif(backends.native() is None, reason="the native extension is not loaded"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture
def program():
    case = CASES["gated colours classes"]
    with torch.no_grad():
        return program_of(case.model(torch.float32), 2, case.size, case.condition(2))


def reversed_fields(records):
    """The same records, every field at another place."""
    return {
        name: dict(reversed(part.items())) if name == "sizes" else [dict(reversed(one.items())) for one in part]
        for name, part in reversed(records.items())
    }


def cpu_plan(program):
    return cpu_packing.build(program).native


def cuda_plan(program):
    return cuda_packing.build(program, cuda_emulated.module()).native


def test_the_order_of_fields_means_nothing(program, monkeypatch):
    images = random_images(2, CASES["gated colours classes"].size, 4)
    expected, tables = sampling.teacher_forced(program, images, "cpu"), cuda_plan(program).tables()
    by_name = Records.by_name
    monkeypatch.setattr(Records, "by_name", lambda self: reversed_fields(by_name(self)))
    program.cache.clear()
    assert sampling.teacher_forced(program, images, "cpu").equal(expected)
    assert cuda_plan(program).tables() == tables


def instructions(change):
    """The records with a change made to the second instruction."""

    def changed(records):
        change(records["instructions"][1])
        return records

    return changed


@pytest.mark.parametrize("plan", [cpu_plan, cuda_plan])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (instructions(lambda i: i.pop("arena_groups")), r"instructions\[1\]: 'arena_groups' is missing"),
        (instructions(lambda i: i.update(speed=1)), r"instructions\[1\]: no field is named 'speed'"),
        (instructions(lambda i: i.update(rows=1.5)), r"instructions\[1\]: unfit 'rows', 1.5"),
        (instructions(lambda i: i.update(kind="jump")), r"instructions\[1\]: unfit 'kind', 'jump'"),
        (instructions(lambda i: i.update(function="cosine")), r"instructions\[1\]: unfit 'function', 'cosine'"),
        (lambda r: {**r, "spans": [{**r["spans"][0], "operand": [0] * 5}]}, r"spans\[0\]: unfit 'operand', \[0, "),
        (lambda r: {**r, "sizes": {"height": 1}}, "sizes: 'width' is missing"),
        (lambda r: {name: part for name, part in r.items() if name != "groups"}, "records: 'groups' is missing"),
    ],
)
def test_a_field_that_is_missing_unknown_or_unfit_is_named(program, plan, change, message, monkeypatch):
    by_name = Records.by_name
    monkeypatch.setattr(Records, "by_name", lambda self: change(by_name(self)))
    with pytest.raises(ValueError, match=f"sampler plan: {message}"):
        plan(program)
