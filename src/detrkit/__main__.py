"""``python -m detrkit`` equals ``detrkit`` (and is what ``accelerate launch -m detrkit`` starts)."""

from detrkit.cli.main import main

if __name__ == "__main__":
    main()
