import itertools
import json

import pytest

from uni_dpo.data.faults import PreferenceDataError
from uni_dpo.data.tables.json_stream import Unreadable
from uni_dpo.data.tables.reading import iter_rows, numbered_rows
from uni_dpo.data.tables.splitting import merge, parse_shares, row_groups, sample, split
from uni_dpo.errors import UniDPOError


@pytest.fixture
def table(tmp_path):
    """60 rows over 20 images, each in three rows; rows 57 and 58 join two images."""
    rows = [{"id": i, "instruction": f"<image>q{i % 30}", "images": [f"dir/{i % 20}.png"]} for i in range(60)]
    rows[57]["images"] = ["dir/17.png", "dir/../dir/18.png"]
    rows[59]["images"] = []
    path = tmp_path / "all.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def images(path) -> set[str]:
    return {image.replace("dir/../", "") for row in iter_rows(path) for image in row["images"]}


def test_no_image_stands_in_two_splits(table, tmp_path) -> None:
    parts = {tmp_path / "a.jsonl": 0.8, tmp_path / "b.json": 0.1, tmp_path / "c.parquet": 0.1}
    counts = split(table, parts, seed=3)
    assert sum(counts.values()) == 60
    assert counts[tmp_path / "a.jsonl"] == pytest.approx(48, abs=3)
    for one in parts:
        for other in parts:
            assert one == other or not images(one) & images(other)
    ids = [[row["id"] for row in iter_rows(part)] for part in parts]
    assert sorted(itertools.chain(*ids)) == list(range(60))
    assert all(part == sorted(part) for part in ids)


def test_no_prompt_stands_in_two_splits(table, tmp_path) -> None:
    split(table, {tmp_path / "a.jsonl": 1, tmp_path / "b.jsonl": 1}, by="prompt")
    prompts = [{row["instruction"] for row in iter_rows(tmp_path / name)} for name in ("a.jsonl", "b.jsonl")]
    assert not prompts[0] & prompts[1]
    assert len(prompts[0]) == len(prompts[1]) == 15


def test_the_same_seed_gives_the_same_file(table, tmp_path) -> None:
    for name, seed in (("1", 7), ("2", 7), ("3", 8)):
        split(table, {tmp_path / f"a{name}.jsonl": 0.5, tmp_path / f"b{name}.jsonl": 0.5}, seed=seed)
        sample(table, tmp_path / f"s{name}.jsonl", 10, seed=seed)
    for kind in "abs":
        first, second, third = ((tmp_path / f"{kind}{name}.jsonl").read_bytes() for name in "123")
        assert first == second != third


def test_groups_join_through_shared_keys() -> None:
    rows = [{"images": list(names)} for names in ("a", "b", "ab", "c", "", "")]
    groups = row_groups(rows, "image")
    assert groups[0] == groups[1] == groups[2]
    assert len({groups[0], *groups[3:]}) == 4
    assert list(row_groups(rows, None)) == [0, 1, 2, 3, 4, 5]


def test_a_group_is_known_by_its_bytes_too() -> None:
    rows = [{"image": {"bytes": b"x", "path": "1"}}, {"image": {"bytes": b"x", "path": "2"}}, {"image": b"y"}]
    groups = row_groups(rows, "image")
    assert groups[0] == groups[1] != groups[2]


def test_samples_keep_order_and_whole_groups(table, tmp_path) -> None:
    assert sample(table, tmp_path / "rows.jsonl", 10) == 10
    ids = [row["id"] for row in iter_rows(tmp_path / "rows.jsonl")]
    assert len(ids) == 10
    assert ids == sorted(ids)
    written = sample(table, tmp_path / "groups.jsonl", 10, by="image", seed=1)
    drawn = images(tmp_path / "groups.jsonl")
    rest = {row["id"] for row in iter_rows(table)} - {row["id"] for row in iter_rows(tmp_path / "groups.jsonl")}
    assert written <= 10
    assert not any(images_of & drawn for images_of in (set(r["images"]) for r in iter_rows(table) if r["id"] in rest))
    assert sample(table, tmp_path / "all_of_them.jsonl", 1000) == 60


def test_merge_keeps_every_row_and_its_source(table, tmp_path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"id": 99, "instruction": "q", "images": []}]))
    counts = merge([table, other], tmp_path / "m.jsonl", source_column="source")
    assert counts == {str(table): 60, str(other): 1}
    rows = list(iter_rows(tmp_path / "m.jsonl"))
    assert [row["source"] for row in rows] == ["all.jsonl"] * 60 + ["other.json"]
    other.write_text(json.dumps([{"conversations": []}]))
    with pytest.raises(
        PreferenceDataError, match=r"holds \['conversations'\] where the first file holds \['instruction'\]"
    ):
        merge([table, other], tmp_path / "n.jsonl")
    assert not (tmp_path / "n.jsonl").exists()


def test_what_is_read_is_never_written_over(table, tmp_path) -> None:
    before = table.read_bytes()
    for run in (
        lambda: split(table, {table: 0.5, tmp_path / "b.jsonl": 0.5}),
        lambda: sample(table, table, 5),
        lambda: merge([table], table),
    ):
        with pytest.raises(PreferenceDataError, match="is what is read"):
            run()
    assert table.read_bytes() == before


def test_splits_that_cannot_be_are_refused(table, tmp_path) -> None:
    with pytest.raises(UniDPOError, match="two or more files"):
        split(table, {tmp_path / "a.jsonl": 1.0})
    with pytest.raises(UniDPOError, match=r"split: 0\.2 \+ 0\.3 is 0\.5 and not 1; name a file for the rest"):
        split(table, {tmp_path / "a.jsonl": 0.2, tmp_path / "b.jsonl": 0.3})
    with pytest.raises(UniDPOError, match=r"split: 0\.7 \+ 0\.7 is 1\.4 and not 1"):
        split(table, {tmp_path / "a.jsonl": 0.7, tmp_path / "b.jsonl": 0.7})
    with pytest.raises(UniDPOError, match="would get no row"):
        split(table, {tmp_path / "a.jsonl": 1.0, tmp_path / "b.jsonl": 1e-6})
    with pytest.raises(PreferenceDataError, match="column 'colour': not in a row"):
        split(table, {tmp_path / "a.jsonl": 1, tmp_path / "b.jsonl": 1}, by="colour")
    with pytest.raises(UniDPOError, match="ask for one or more"):
        sample(table, tmp_path / "a.jsonl", 0)
    with pytest.raises(UniDPOError, match=r"'a\.jsonl': write FILE=SHARE"):
        parse_shares(["a.jsonl"])
    assert parse_shares(["a=b.jsonl=0.5"]) == {"a=b.jsonl": 0.5}
    with pytest.raises(UniDPOError, match=r"a\.jsonl is given twice"):
        parse_shares(["./a.jsonl=0.5", "a.jsonl=0.5"])


def test_merge_writes_over_no_column(table, tmp_path) -> None:
    with pytest.raises(UniDPOError, match="has a column 'id' already; name another --source-column"):
        merge([table], tmp_path / "m.jsonl", source_column="id")
    assert not (tmp_path / "m.jsonl").exists()


def test_what_is_not_there_is_not_of_an_unknown_type(tmp_path) -> None:
    with pytest.raises(PreferenceDataError, match="nothere: no such file or folder"):
        list(iter_rows(tmp_path / "nothere"))


@pytest.mark.parametrize(
    "bad",
    [
        '{"id": 2, "chosen": "yes", "chosen": "no"}',
        '{"id": 2, "messages": [{"chosen": 1, "chosen": 1}]}',
    ],
)
@pytest.mark.parametrize("form", ["{}\n{}\n{}\n", "[{},\n{},\n{}]"])
def test_a_field_that_stands_twice_is_named(tmp_path, form, bad) -> None:
    """JSON keeps the last one without a word."""
    path = tmp_path / "p.json"
    long = json.dumps({"id": 1, "messages": [{"role": "a"}, {"role": "b"}], "text": "x" * (1 << 21)})
    path.write_text(form.format(long, bad, '{"id": 3}'))
    rows = [row for _, _, row in numbered_rows(path)]
    assert rows == [json.loads(long), Unreadable("gives 'chosen' twice"), {"id": 3}]
    with pytest.raises(PreferenceDataError, match=r"p\.json.*row 1 \(line 2\).*gives 'chosen' twice"):
        list(iter_rows(path))


def test_the_images_of_rejected_answers_stand_in_one_split_too() -> None:
    rows = [{"images": ["a"], "rejected_images": ["b"]}, {"images": ["b"]}, {"images": ["c"], "rejected_images": []}]
    groups = row_groups(rows, "image")
    assert groups[0] == groups[1] != groups[2]


def test_paths_lead_from_the_output_to_the_same_files(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
        (tmp_path / name / "p.json").write_text(json.dumps([{"images": ["1.png", "elsewhere.png", f"/{name}.png"]}]))
    merge([tmp_path / "a" / "p.json", tmp_path / "b" / "p.json"], tmp_path / "a" / "all.jsonl")
    rows = [row["images"] for row in iter_rows(tmp_path / "a" / "all.jsonl")]
    assert rows == [["1.png", "elsewhere.png", "/a.png"], ["../b/1.png", "elsewhere.png", "/b.png"]]
    sample(tmp_path / "b" / "p.json", tmp_path / "new" / "s.jsonl", 1)
    rows = [{"images": ["1.png"]}, {"images": ["2.png"]}]
    (tmp_path / "b" / "q.json").write_text(json.dumps(rows))
    parts = [tmp_path / "new" / "1.jsonl", tmp_path / "new" / "2.jsonl"]
    split(tmp_path / "b" / "q.json", dict.fromkeys(parts, 1), image_root=tmp_path / "b")
    assert sorted(row["images"][0] for part in parts for row in iter_rows(part)) == ["1.png", "2.png"]
    assert next(iter_rows(tmp_path / "new" / "s.jsonl"))["images"][0] == "../b/1.png"
    halves = tmp_path / "new" / "one.jsonl", tmp_path / "a" / "two.jsonl"
    split(tmp_path / "a" / "all.jsonl", dict.fromkeys(halves, 0.5), by=None)
    found = [(half.parent / next(iter_rows(half))["images"][0]).resolve() for half in halves]
    assert sorted(found) == [tmp_path / "a" / "1.png", tmp_path / "b" / "1.png"]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    sample(tmp_path / "b" / "q.json", tmp_path / "link" / "s.jsonl", 2)
    assert (tmp_path / "link" / next(iter_rows(tmp_path / "link" / "s.jsonl"))["images"][0]).is_file()
