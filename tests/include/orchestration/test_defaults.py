"""What tasks say of a run, before it becomes the run's note."""

from __future__ import annotations

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from include.orchestration import defaults


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("this run is not reviewed", "This run is not reviewed."),
        ("meld: nothing changed, so nobody is told", "meld: nothing changed, so nobody is told."),
    ],
)
def test_a_reason_becomes_a_sentence(monkeypatch: pytest.MonkeyPatch, reason: str, sentence: str) -> None:
    said: list[str] = []
    monkeypatch.setattr(defaults, "leave_note", said.append)
    with pytest.raises(AirflowSkipException, match=reason):
        defaults.skip(reason)
    assert said == [sentence]
