"""``visionmill demo``: its jobs are ones that anybody can run without a download."""

from __future__ import annotations

import pytest

from flows.demo import SOURCE, DemoJob, demo_jobs
from modelkit.records import shipped_records
from tasks.product import default_product, products


@pytest.mark.parametrize("job", demo_jobs(), ids=lambda job: job.product.name)
def test_every_job_of_the_demo_takes_a_model_that_comes_along_and_options_that_its_command_knows(job: DemoJob) -> None:
    parameters = job.product.parameters(source=SOURCE, output=job.output, **job.options)
    assert parameters.model in {each.name for each in shipped_records()}
    assert set(job.options) <= set(type(parameters).model_fields)


def test_the_demo_shows_every_product_and_the_one_that_others_build_upon_first() -> None:
    shown = [job.product.name for job in demo_jobs()]
    assert shown[0] == default_product().name and sorted(shown) == sorted(products())
    assert len({job.output for job in demo_jobs()}) == len({job.page for job in demo_jobs()}) == len(shown)
