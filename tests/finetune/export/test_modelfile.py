"""What Ollama is told beside the weights."""

import json
from pathlib import Path

from seeklet.finetune.export.chat_templates import find_template
from seeklet.finetune.export.modelfile import is_quotable, licence_in, sampling_of, stops_of, write_modelfile
from tests.finetune.nano_checkpoints import deepseek_tokenizer


def write_generation(folder: Path, **values: object) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(values))
    return folder


def test_sampling_is_the_checkpoints_else_r1s(tmp_path: Path) -> None:
    assert sampling_of(tmp_path) == {"temperature": 0.6, "top_p": 0.95}
    assert sampling_of(write_generation(tmp_path, top_k=20)) == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    said = write_generation(tmp_path, temperature=1.0, min_p=0.1, repetition_penalty=1.05, do_sample=True)
    assert sampling_of(said) == {"temperature": 1.0, "min_p": 0.1, "repeat_penalty": 1.05}


def test_answers_stop_at_every_end_and_at_turns(tmp_path: Path) -> None:
    tokenizer = deepseek_tokenizer()
    template = find_template(tokenizer)
    assert template is not None
    stops = ["<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
    assert stops_of(tmp_path, tokenizer, template) == stops
    other = tokenizer.convert_tokens_to_ids("<｜tool▁calls▁end｜>")
    assert stops_of(write_generation(tmp_path, eos_token_id=[1, other]), tokenizer, template) == [
        "<｜end▁of▁sentence｜>",
        "<｜tool▁calls▁end｜>",
        "<｜User｜>",
        "<｜Assistant｜>",
    ]


def test_the_whole_file() -> None:
    template = find_template(deepseek_tokenizer())
    assert template is not None
    written = write_modelfile(
        "x.gguf",
        template,
        begins_with="<｜begin▁of▁sentence｜>",
        system="Be kind.\nBe brief.",
        sampling={"temperature": 0.6},
        stops=["<｜User｜>"],
        licence="MIT",
    )
    begin, _, rest = written.partition(template.text)
    assert begin == 'FROM ./x.gguf\nTEMPLATE """<｜begin▁of▁sentence｜>'
    assert rest == (
        '"""\nSYSTEM """Be kind.\nBe brief."""\nPARAMETER temperature 0.6\n'
        'PARAMETER stop "<｜User｜>"\nLICENSE """MIT"""\n'
    )


def test_what_no_modelfile_can_say(tmp_path: Path) -> None:
    assert is_quotable('A "word" within')
    assert not is_quotable('the end"') and not is_quotable('three """ marks')
    assert licence_in(tmp_path) is None
    (tmp_path / "LICENSE").write_text("  MIT\n")
    assert licence_in(tmp_path) == "MIT"
