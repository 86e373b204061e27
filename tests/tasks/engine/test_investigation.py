"""Finding the item that kills: whatever the hints say, the verdict names the guilty one and nobody else."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.engine.heartbeat import Mark
from tasks.engine.investigation import Culprit, Investigation, Probe
from tasks.engine.job import Quarantine
from tasks.records import Entry, ItemFailure, Shard

FAILURE = ItemFailure("decode", "WorkerCrash", "it died")


def image(i: int) -> Entry:
    return Entry(uri=f"/in/{i:03d}.jpg", etag="1", size_bytes=1000, media="image")


def shard_of(entries: list[Entry]) -> Shard:
    return Shard("s", 1, 0, tuple(entries), float(len(entries)))


def solve(investigation: Investigation, kills: object) -> tuple[Culprit | None, int, int]:
    """Play the workers: ``kills(probe)`` says whether it dies. Returns the culprit, and counts of probes and deaths."""
    probes = deaths = 0
    while (probe := investigation.next()) is not None:
        probes += 1
        assert probes < 200
        if kills(probe):  # type: ignore[operator]
            deaths += 1
            investigation.died()
        else:
            investigation.survived()
    return investigation.culprit, probes, deaths


@settings(deadline=None)
@given(
    size=st.integers(1, 200),
    guilty=st.integers(0, 199),
    suspects=st.lists(st.integers(-1, 250), max_size=12),
)
def test_the_guilty_image_is_found_whatever_the_hints(size: int, guilty: int, suspects: list[int]) -> None:
    guilty %= size
    hints = [Mark("s", i, 0) for i in suspects]
    investigation = Investigation(shard_of([image(i) for i in range(size)]), hints)
    culprit, probes, _deaths = solve(investigation, lambda probe: guilty in probe.entries)
    assert culprit == Culprit(guilty, 0, rest=False)
    assert probes <= 12 + 3 + 2 * size.bit_length() + 2


def test_a_right_hint_needs_one_death() -> None:
    investigation = Investigation(shard_of([image(i) for i in range(100)]), [Mark("s", 41, 0)])
    assert investigation.next() == Probe((41,))
    investigation.died(silently=False)
    assert investigation.culprit == Culprit(41, 0, rest=False)


def test_a_silent_death_needs_to_be_seen_twice() -> None:
    investigation = Investigation(shard_of([image(i) for i in range(4)]), [Mark("s", 1, 0)])
    investigation.died()
    assert (investigation.culprit, investigation.next()) == (None, Probe((1,)))
    investigation.survived()  # it was somebody from outside
    assert investigation.next() == Probe((0, 2, 3))
    investigation.survived()
    assert investigation.inconclusive


def test_an_innocent_shard_is_inconclusive() -> None:
    investigation = Investigation(shard_of([image(i) for i in range(9)]), [Mark("s", 3, 0)])
    culprit, probes, deaths = solve(investigation, lambda probe: False)
    assert (culprit, deaths) == (None, 0)
    assert probes == 2
    assert investigation.inconclusive


def test_two_guilty_images_are_found_one_after_the_other() -> None:
    shard, guilty, verdicts = shard_of([image(i) for i in range(20)]), {3, 17}, []
    for _ in range(2):
        left_alone = {q.entry for q in verdicts}
        investigation = Investigation(shard, [], verdicts)
        culprit, _, _ = solve(investigation, lambda probe: bool((guilty - left_alone) & set(probe.entries)))  # noqa: B023
        assert culprit is not None
        verdicts.append(Quarantine(culprit.entry, culprit.frame, FAILURE))
    assert {q.entry for q in verdicts} == guilty


@settings(deadline=None)
@given(
    first=st.integers(0, 50),
    length=st.integers(1, 300),
    offset=st.integers(0, 299),
    hint=st.one_of(st.none(), st.integers(-1, 400)),
    known_end=st.booleans(),
)
def test_the_guilty_frame_of_a_video_is_found(
    first: int, length: int, offset: int, hint: int | None, known_end: bool
) -> None:
    guilty = first + offset % length
    video = Entry(
        uri="/in/v.mp4",
        etag="1",
        size_bytes=10**6,
        media="video",
        first_frame=first,
        end_frame=first + length if known_end else None,
    )
    hints = [] if hint is None else [Mark("s", 1, hint)]
    investigation = Investigation(shard_of([image(0), video, image(2)]), hints)
    culprit, probes, _ = solve(
        investigation,
        lambda probe: 1 in probe.entries and (probe.end_frame is None or probe.end_frame > guilty),
    )
    assert culprit == Culprit(1, guilty, rest=False)
    assert probes < 40


def test_a_frame_that_kills_though_it_was_left_alone_takes_the_rest_of_its_video_with_it() -> None:
    video = Entry(uri="/in/v.mp4", etag="1", size_bytes=10**6, media="video", end_frame=50)
    quarantined = [Quarantine(0, 20, FAILURE)]
    investigation = Investigation(shard_of([video]), [Mark("s", 0, 20)], quarantined)
    culprit, _, _ = solve(investigation, lambda probe: probe.end_frame is None or probe.end_frame > 20)
    assert culprit == Culprit(0, 20, rest=True)
