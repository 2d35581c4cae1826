"""`uni-dpo chat`: a conversation in the terminal."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uni_dpo.errors import UniDPOError

if TYPE_CHECKING:
    from uni_dpo.inference.chat import Chat

COMMANDS = "/image PATH shows an image with your next line, /new forgets what was said, /exit (or Ctrl-D) ends"


def chat(
    model: Annotated[str, typer.Argument(help="Folder or hub name of a checkpoint or adapter.", show_default=False)],
    images: Annotated[list[Path] | None, typer.Argument(help="Shown with your first line.", show_default=False)] = None,
    system: Annotated[str | None, typer.Option(help="System prompt; without it what the chat template does.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 1024,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Share of the probability that tokens are drawn from.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the weights; auto is the checkpoint's own.")] = "auto",
    quantization: Annotated[str | None, typer.Option(help="4bit or 8bit, by bitsandbytes.")] = None,
    device: Annotated[str, typer.Option(help="auto takes the GPU if there is one.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the checkpoint.")
    ] = False,
) -> None:
    """Talk with a checkpoint, base or instruct, full or adapter, about images or without."""
    from uni_dpo.inference.chat import Chat
    from uni_dpo.models.backends.base import Sampling, parse_model
    from uni_dpo.models.checkpoint import find_checkpoint

    for path in images or []:
        _check_image(path)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    entry = {
        "model": model,
        "dtype": dtype,
        "quantization": quantization,
        "device": device,
        "trust_remote_code": trust_remote_code,
    }
    _, options = parse_model(entry, "chat")
    find_checkpoint(model)
    talk(Chat(options, sampling, system=system, seed=seed), list(images or []))


def talk(conversation: "Chat", images: list[Path]) -> None:
    """Read lines and print answers until the input ends.

    A fault of one line, such as an image that is not there, is said and the conversation stays as it was.
    """
    asks = sys.stdin.isatty()
    if asks:
        print(COMMANDS)
    while True:
        try:
            line = input("> " if asks else "").strip()
        except EOFError:
            return
        if line == "/exit":
            return
        if line == "/new":
            conversation.begin_anew()
            images = []
        elif line.startswith("/image"):
            images += _given_image(line)
        elif line.startswith("/"):
            print(f"{line.split()[0]} is unknown: {COMMANDS}")
        elif line:
            images = _answer(conversation, line, images)


def _answer(conversation: "Chat", line: str, images: list[Path]) -> list[Path]:
    """Print the answer as it comes; return the images that are still to be shown."""
    try:
        for piece in conversation.say(line, images):
            print(piece, end="", flush=True)
    except UniDPOError as error:
        print(f"error: {error}", file=sys.stderr)
        return []
    print()
    if conversation.cut:
        print(f"(cut at {conversation.sampling.max_tokens} tokens; --max-tokens raises the limit)", file=sys.stderr)
    return []


def _given_image(line: str) -> list[Path]:
    path = Path(line.removeprefix("/image").strip()).expanduser()
    try:
        _check_image(path)
    except UniDPOError as error:
        print(f"error: {error}", file=sys.stderr)
        return []
    return [path]


def _check_image(path: Path) -> None:
    if not path.is_file():
        raise UniDPOError(f"there is no image file {path}")
