"""`flywheel` on the command line: the engine's commands, and what rooms bring."""

from __future__ import annotations

import os

from engine.execution import stops

stops.listen()  # before anything is imported that takes long

from engine.cli import add_command  # noqa: E402
from engine.cli import main as command  # noqa: E402

add_command(
    "argilla",
    "labeling.argilla.commands:app",
    "The Argilla server of this machine, where people rank.",
)
add_command("chat", "generators.chat.command:app", "Talk to a model in the terminal.")
add_command("ask", "generators.chat.ask_command:app", "Answer a question from your own documents, with citations.")
add_command(
    "serve", "generators.chat.serve_command:app", "Answer from your own documents on an OpenAI-compatible endpoint."
)
add_command("scaling", "training.pretrain.scaling_command:app", "Foretell what a larger pretraining will give.")
add_command("ui", "engine.view.ui.local_server:app", "Look at runs, rows, curves, answers and costs in a browser.")


def main() -> None:
    """Entry point of `flywheel`. Of the processes that torchrun starts the first does what the command says, the others what it has them do."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from training.loops.torchrun import take_part

        take_part(command)
    else:
        command()


if __name__ == "__main__":
    main()
