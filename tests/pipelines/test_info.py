"""What a pipeline says of itself, as a text and as a table for notebooks."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import torch
from tiny import tiny_pipeline
from torch import nn

from ddim import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from ddim.pipelines.info import ModelInfo, PartInfo, model_info


class Table(HTMLParser):
    """Reads a table: the texts of its cells, and every tag and attribute that a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[Any] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag in ("td", "th", "caption"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.cells[-1] += data


def test_the_text_has_every_part_with_its_size_and_settings() -> None:
    pipe = tiny_pipeline(num_class_embeds=4)
    assert pipe.info() == model_info(pipe)
    count = sum(parameter.numel() for parameter in pipe.unet.parameters())
    text = repr(model_info(pipe))
    lines = text.splitlines()
    assert lines[0] == "DDIMPipeline"
    assert f"  {count:,} parameters, {4 * count / 2**20:.1f} MiB as torch.float32" in lines
    assert lines.count("unet: UNet2DModel") == lines.count("scheduler: DDIMScheduler") == 1
    assert "  num_class_embeds = 4" in lines
    assert "  timestep_spacing = leading" in lines
    settings = [line for line in lines if " = " in line]
    assert not [line for line in settings if line.endswith("= None") or line.startswith("  _")]
    assert len(re.findall(r"parameters,", text)) == 1  # the scheduler learns nothing
    pipe.to(torch.bfloat16)
    assert f"{2 * count / 2**20:.1f} MiB as torch.bfloat16" in repr(model_info(pipe))


def test_the_table_has_the_same() -> None:
    info = model_info(tiny_pipeline(num_class_embeds=4))
    table = Table(info._repr_html_())
    assert table.cells[:7] == ["DDIMPipeline", "part", "class", "parameters", "size", "dtype", "settings"]
    assert len(table.cells) == 7 + 6 * len(info.parts) == 19
    for part, place in zip(info.parts, (7, 13), strict=True):
        row = table.cells[place : place + 6]
        assert row[:2] == [part.name, part.kind]
        assert row[2] == ("" if part.parameters is None else f"{part.parameters:,}")
        assert row[4] == (part.dtype or "")
        for name, value in part.settings.items():
            assert f"{name} = {value}" in row[5]


def test_a_part_that_is_left_out_and_one_without_weights() -> None:
    pipe: Any = type("Pipe", (), {"components": {"tokenizer": None, "unet": nn.Identity()}})()
    assert repr(model_info(pipe)) == "Pipe\n\ntokenizer: none\nunet: Identity"


def test_hostile_texts_are_shown_and_do_nothing() -> None:
    """A config may come from anywhere: no text of it may become HTML in a notebook, or move a terminal's cursor."""
    evil = "</pre><script>alert('1 & \"2\"')</script><img src=x onerror=alert(1)>"
    info = ModelInfo(evil, (PartInfo(evil, evil, 3, 4, evil, {evil: evil, "list": [evil]}),))
    table = Table(info._repr_html_())
    assert table.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary", "pre"}
    assert set(table.attributes) == {
        ("style", "text-align: left; vertical-align: top"),
        ("style", "white-space: pre-wrap"),
    }
    assert [cell for cell in table.cells if cell == evil] == [evil] * 4  # caption, name, class, type
    assert f"{evil} = {evil}" in table.cells[-1]
    assert evil in unescape(info._repr_html_())
    cursor = ModelInfo("Pipe", (PartInfo("unet", "U", None, None, None, {"name": "a\x1b[2Jb\nc\u202ed ᾱ é"}),))
    assert repr(cursor).splitlines()[-1] == "  name = a\\x1b[2Jb\\nc\\u202ed ᾱ é"


def test_configs_of_real_pipelines_are_escaped() -> None:
    pipe = tiny_pipeline()
    pipe.unet.register_to_config(act_fn="<b onclick=x>silu</b>")
    html = model_info(pipe)._repr_html_()
    assert "<b" not in html
    assert "act_fn = &lt;b onclick=x&gt;silu&lt;/b&gt;" in html


# --- a pipeline itself ------------------------------------------------------------------------------------------------


def test_a_pipeline_prints_in_a_few_lines() -> None:
    pipe = tiny_pipeline(num_class_embeds=4)
    count = sum(parameter.numel() for parameter in pipe.unet.parameters())
    assert repr(pipe).splitlines() == [
        "DDIMPipeline on cpu",
        f"  unet       UNet2DModel, {count:,} parameters, float32",
        "  scheduler  DDIMScheduler, epsilon, leading",
    ]
    assert str(pipe) == repr(pipe)


def test_what_it_prints_follows_what_it_is() -> None:
    pipe = DiffusionPipeline.from_pretrained("emoji")
    lines = repr(pipe).splitlines()
    assert lines[0] == "StableDiffusionPipeline of emoji on cpu"
    assert [line.split()[0] for line in lines[1:]] == ["vae", "text_encoder", "tokenizer", "unet", "scheduler"]
    assert lines[-1].endswith("DDIMScheduler, v_prediction, trailing, zero SNR")
    pipe.scheduler = DDIMScheduler(prediction_type="sample")
    pipe.to(torch.bfloat16)
    assert repr(pipe).splitlines()[-1].endswith("DDIMScheduler, sample, leading")
    assert "UNet2DConditionModel, 11,008,132 parameters, bfloat16" in repr(pipe)
    pipe.to("meta")
    assert repr(pipe).splitlines()[0].endswith(" on meta")


def test_what_runs_it_and_its_adapters_are_printed() -> None:
    pipe = tiny_pipeline().accelerate("compile")
    assert repr(pipe).splitlines()[0].startswith("DDIMPipeline on cpu, run by ")
    pipe.get_active_adapters = lambda: ["cats", "dogs"]  # type: ignore[attr-defined]
    assert repr(pipe).splitlines()[-1] == "  adapters   cats, dogs"


def test_a_pipeline_without_parts_prints_too() -> None:
    assert repr(DiffusionPipeline()) == "DiffusionPipeline"
    assert repr(DiffusionPipeline.__new__(DiffusionPipeline)) == "DiffusionPipeline"
    pipe = StableDiffusionPipeline(None, None, None, None, DDIMScheduler())
    assert repr(pipe).splitlines() == ["StableDiffusionPipeline", "  scheduler  DDIMScheduler, epsilon, leading"]


def test_a_hostile_config_prints_nothing_that_moves_the_cursor() -> None:
    pipe = tiny_pipeline()
    pipe.name_or_path = "a\x1b[2Jb\n"
    pipe.scheduler.config.timestep_spacing = "\x1b[31m" * 100
    assert "\x1b" not in repr(pipe)
    assert len(repr(pipe)) < 400
