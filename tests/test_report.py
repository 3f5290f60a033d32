"""The report: complete, safe, self-contained, and with the numbers of results.json."""

import copy
import json
import re

import numpy as np
import pytest
from parsed_page import Page

from threedim.evaluation import plot, protocol, published, report, scores


def bins():
    names = ("psnr", "psnr_p10", "psnr_p90", "repeated_psnr")
    return [
        {"from_degrees": 15 * i, "to_degrees": 15 * i + 15, "views": 10 * (i + 1)}
        | {name: value - i for name, value in zip(names, (25.0, 22.0, 27.5, 20.0), strict=True)}
        for i in (0, 1, 3)
    ]


def one_object(psnr):
    row = {"psnr": psnr, "ssim": 0.6, "ssim_uniform": 0.58, "lpips": None}
    views = {"number": [0, 2], "angle_degrees": [10.5, 80.0], "psnr": [psnr + 1, psnr - 1], "ssim": [0.5, 0.7]}
    repeated = {"repeated_psnr": 11.25, "repeated_ssim": 0.4, "repeated_lpips": None}
    return row | repeated | {"input_views": [64], "views": views | {"lpips": None}}


@pytest.fixture
def results():
    return {
        "dataset": {"psnr": 21.4321, "psnr_std_over_objects": 1.5678, "ssim": 0.6543, "ssim_std_over_objects": 0.0123}
        | {"ssim_uniform": 0.6321, "fid": None, "patch_distance": 33.219, "lpips": None},
        "measures": scores.MEASURES,
        "baselines": {"input view repeated": {"psnr": 14.8765, "ssim": 0.4321, "patch_distance": 77.777}},
        "num_objects": 2,
        "num_views": 4,
        "equal_views": 0,
        "psnr_of_equal_views": 94.97,
        "patch_distance_views": 4,
        "not_computed": {"fid": "no weights <named>", "lpips": "left out"},
        "warnings": [],
        "psnr_by_angle": bins(),
        "protocol": {"split": "test", "objects_in_split": 2, "data_fingerprint": "abc", "input_view": 64}
        | {"image_size": 128, "views": "sampled here", "max_objects": 0, "seed": 0},
        "published": "cars",
        "checkpoint_step": 1234,
        "sampling": {"solver": "ddim", "eta": None},
        "inception": None,
        "lpips_network": None,
        "lpips_weights": None,
        "commit": {"hash": "0123abcd", "modified": True},
        "versions": {"jax": "9.8.7"},
        "device": {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1},
        "config": {"seed": 0},
        "objects": {"<script>alert(1)</script>": one_object(22.5), "b&b": one_object(20.25)},
    }


def strip(name, size=8):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (4, size, size, 3), np.uint8)
    views = [report.StripView(0, 10.5, 23.5, picture[0], picture[1]), report.StripView(2, 80.0, 21.5, *picture[2:])]
    return report.Strip(name, 22.5, 0.6, {64: picture[0]}, views)


def test_page_is_complete(results):
    text = report.render(results, {"Best objects": [strip("b&b")]})
    page = Page(text)
    said = " ".join(page.text)
    numbers = ("21.43 dB", "0.654", "33.22", "± 1.57", "14.88", "0.432", "77.78", "22.50", "20.25", "step 1,234")
    assert [number for number in numbers if number not in said] == []
    facts = ("not computed, see below", "no weights <named>", "0123abcd, with changes", "jax 9.8.7", "solver ddim")
    assert [fact for fact in facts if fact not in said] == []
    assert "eta" not in said.split("protocol")[0].split("solver ddim")[-1]
    tags = [tag for tag, _ in page.tags]
    assert (tags.count("img"), tags.count("svg")) == (5, 1)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert "prefers-color-scheme: dark" in text


def test_the_page_says_what_each_figure_is(results):
    said = " ".join(Page(report.render(results, {})).text)
    for words in (
        "mean of the views' dB",
        "no input view",
        "11 px, sigma 1.5",
        "7 px, sample covariance",
        "without padding",
    ):
        assert words in said
    assert "pytorch-fid" not in said
    results["dataset"]["fid"] = 12.5
    said = " ".join(Page(report.render(results, {})).text)
    for words in ("pytorch-fid's", "true ones from the same cameras", "equally many"):
        assert words in said


def test_page_is_self_contained(results):
    text = report.render(results, {"Best objects": [strip("b&b")]})
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "iframe", "object", "base")
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import", text)


def test_page_with_lpips(results):
    without = " ".join(Page(report.render(results, {})).text)
    assert "weights of LPIPS none" in without
    assert "version 0.1 by" not in without
    results["dataset"] |= {"lpips": 0.12345, "lpips_std_over_objects": 0.0321}
    results["baselines"]["input view repeated"]["lpips"] = 0.4567
    results["objects"]["b&b"]["lpips"] = 0.9871
    results["lpips_network"] = "VGG16"
    files = {"backbone": {"name": "back<bone>.pth", "sha256": "12ab"}, "lin": {"name": "lin.pth", "sha256": "34cd"}}
    results["lpips_weights"] = files
    said = " ".join(Page(report.render(results, {})).text)
    facts = ("0.123", "± 0.032", "0.457", "0.987", "0.078", "version 0.1 by VGG16", "back<bone>.pth, 12ab; lin.pth")
    assert [fact for fact in facts if fact not in said] == []


def test_text_is_escaped(results):
    text = report.render(results, {"<b>": [strip("<i>'\"")]})
    assert not [words for words in ("<script", "<i>", "<b>&") if words in text]
    said = " ".join(Page(text).text)
    assert not [words for words in ("<script>alert(1)</script>", "<i>'\"") if words not in said]


def test_published_rows_are_shown(results):
    def rows():
        page = report.render(results, {})
        return re.findall(r"<tr class=\"[^\"]*\"><td>(.*?)</td>(.*?)</tr>", page)

    cars = {name: re.findall(r"<td>(.*?)</td>", cells) for name, cells in rows()}
    assert cars["this run"] == ["21.43", "0.654", "0.632", "–", "–", "33.22"]
    assert cars["3DiM, 471M"] == ["21.01", "0.57", "–", "8.99", "–", "–"]
    assert cars["PixelNeRF"] == ["23.17", "–", "0.89", "59.24", "–", "–"]
    assert cars["Splatter Image"] == ["24.00", "0.92", "–", "–", "0.078", "–"]
    assert len(cars) == 2 + len(published.TABLES["cars"].rows)
    assert "arXiv 2210.04628" in report.render(results, {})
    chairs = {row.name: (row.psnr, row.ssim or row.ssim_uniform, row.fid) for row in published.TABLES["chairs"].rows}
    assert (chairs["3DiM, 471M"], chairs["VisionNeRF"]) == ((17.05, 0.53, 6.57), (24.48, 0.92, 10.05))
    for name, table in published.TABLES.items():
        assert ("SSIM's windows" in "".join(table.notes)) == (name != "chairs_star")
    assert published.table("chairs_star").rows[0].psnr == 14.29
    results["published"] = "none"
    assert [name for name, _ in rows()] == ["this run", "input view repeated"]
    assert "LPIPS ↓" not in report.render(results, {})
    assert "Nobody has published figures on this data set" in report.render(results, {})


def test_deviations_from_the_paper_are_named(results):
    assert report.caveats(results) == []
    other = copy.deepcopy(results)
    other["protocol"] |= {"objects_in_split": 704, "image_size": 64, "input_view": 0, "seed": 3, "max_views": 20}
    other["warnings"] = ["FID: a set has 4 pictures"]
    found = "\n".join(report.caveats(other))
    for words in (
        *("Only 2 of 704 test objects, chosen by seed 3", "64 px; the paper's are of 128 px"),
        "Only 20 views of each object, spread evenly: FID between fewer views is larger, and each was sampled with",
        *("number 0; the paper's is number 64", "FID: a set has 4 pictures."),
    ):
        assert words in found
    assert all(sentence in " ".join(Page(report.render(other, {})).text) for sentence in found.splitlines())


def test_plot_is_to_scale():
    svg = plot.psnr_by_angle(bins())
    Page(svg)
    line = re.search(r'class="mean" points="([^"]*)"', svg)[1]
    points = np.array([point.split(",") for point in line.split()], float)

    def ticks(pattern):
        """Labels of an axis, rising, and where they stand."""
        return np.array(sorted((float(label), float(place)) for place, label in re.findall(pattern, svg))).T

    y_labels, y = ticks(r'y="([\d.]+)" text-anchor="end">([-\d.]+)<')
    np.testing.assert_allclose(points[:, 1], np.interp([25, 24, 22], y_labels, y - 4), atol=0.2)
    degrees, x = ticks(r'x="([\d.]+)" y="\d+" text-anchor="middle">(\d+)°')
    np.testing.assert_allclose(points[:, 0], np.interp([7.5, 22.5, 52.5], degrees, x), atol=0.2)
    assert y_labels[0] <= 17 < 27.5 <= y_labels[-1]


@pytest.mark.parametrize(("low", "high"), [(20.0, 20.0), (5.0, 95.0), (-3.0, 2.0)])
def test_plot_of_any_range(low, high):
    svg = plot.psnr_by_angle([bins()[0] | {"psnr": high, "psnr_p10": low, "psnr_p90": high, "repeated_psnr": low}])
    heights = [float(y) for y in re.findall(r'cy="([-\d.]+)"', svg)]
    assert all(0 <= y <= 320 for y in heights)
    assert len(re.findall('class="grid"', svg)) in range(2, 9)


def test_json_has_one_line_per_object(results):
    text = protocol.to_json(results)
    assert json.loads(text) == results
    assert sum(line.startswith("    ") and '"number"' in line for line in text.splitlines()) == 2
    results["dataset"]["psnr"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        protocol.to_json(results)
