"""Each rank of ``test_finetune.py``, see :mod:`bridge_runs`."""

if __name__ == "__main__":  # saving starts a process that imports this file again, and has no use for the rest
    from bridge_runs import main

    main()
