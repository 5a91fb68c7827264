"""Server, commands, and timm with Pillow see the same in pictures of every kind.

`make pictures` compares thousands; here is one of each kind.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.pictures.compare import differences, pillow_agrees
from tests.pictures.generate import Picture, all_kinds, pictures
from tests.pictures.scanner import damaged, unexplained
from tests.pictures.serving import BundledModel, are_near, features_by_server

SERVED = 25


@pytest.fixture(scope="module")
def sample() -> list[Picture]:
    return list(pictures(2 * len(list(all_kinds())), seed=1))


@pytest.fixture(scope="module")
def model() -> BundledModel:
    return BundledModel()


def test_each_picture_is_decoded_as_an_independent_reader_shows_it(sample):
    assert [difference for picture in sample for difference in differences(picture)] == []


def test_where_pillow_shows_something_else_it_is_explained(sample):
    differing = [each for each in sample if not pillow_agrees(each)]
    assert [each.name for each in differing if not each.pillow_differs] == []
    # Each explanation is needed: for one picture at least, Pillow does show something else.
    explanations = {each.pillow_differs for each in sample} - {""}
    assert {each.pillow_differs for each in differing} == explanations


def test_server_and_command_see_what_timm_sees(sample, client, model):
    wrong = []
    for picture in sample[:: len(sample) // SERVED]:
        expected = model.features(picture)
        for features in (features_by_server(client, picture), model.features_by_command(picture)):
            if not are_near(features, expected):
                wrong.append(picture.name)
    assert wrong == []


def test_another_picture_has_other_features(sample, model):
    first = sample[0]
    mirrored = Picture("mirrored", first.body, np.ascontiguousarray(first.shows[:, ::-1]))
    assert not are_near(model.features(mirrored), model.features(first))


def test_a_damaged_file_that_pillow_opens_is_decoded():
    reasons = [reason for body in damaged(600, seed=0) if (reason := unexplained(body))]
    assert reasons == []
