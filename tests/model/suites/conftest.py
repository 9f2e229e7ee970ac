"""Each check runs for both models."""

import pytest
from suite_subjects import SUBJECTS


@pytest.fixture(params=SUBJECTS, ids=lambda subject: subject.name, scope="session")
def subject(request):
    return request.param


@pytest.fixture(scope="session")
def model(subject):
    """One for all checks that leave it as it is."""
    return subject.make()


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path)
    return tmp_path
