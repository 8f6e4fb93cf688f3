"""A few steps are measured, and leave no trace."""

import time

import pytest
import torch
from toys import ToyData, ToyModel, toy_config, toy_task

from glocal.training.pace import measure_pace


def test_a_step_takes_its_batches_and_an_epoch_all_of_its_steps_and_the_validation():
    pause = 0.02
    data = ToyData(pause=pause)  # 12 batches of 8, and as many of validation
    pace = measure_pace(ToyModel(), toy_task(), data, toy_config(accumulate=2), seconds=0.3)
    assert 2 * pause < pace.step
    assert pace.epoch > 6 * pace.step
    alone = measure_pace(ToyModel(), toy_task(), data, toy_config(), seconds=0.3)
    assert pause < alone.step < pace.step


def test_the_model_is_left_as_it_was():
    model = ToyModel()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_pace(model, toy_task(), ToyData(), toy_config(), seconds=0.05)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize("pause", [0.5, 0.01])
def test_measuring_ends_by_the_clock_with_one_step_at_least(pause):
    begun = time.perf_counter()
    pace = measure_pace(ToyModel(), toy_task(), ToyData(pause=pause), toy_config(), seconds=0.1)
    assert time.perf_counter() - begun < 0.1 + 4 * pause + 2
    assert pace.step > pause
