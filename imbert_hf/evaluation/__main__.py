"""imbert-eval as `python -m imbert_hf.evaluation`, which launchers of processes take."""

from imbert_hf.command_line import main


if __name__ == "__main__":
    main()
