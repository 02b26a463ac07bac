"""Write a tokenizer of a thousand words into a folder: some clients want one, none counts with it here."""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

folder = Path(sys.argv[1])
special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
words = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(1000))]
made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
made.pre_tokenizer = pre_tokenizers.Whitespace()
made.save(str(folder / "tokenizer.json"))
config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 100000, **special}
(folder / "tokenizer_config.json").write_text(json.dumps(config))
