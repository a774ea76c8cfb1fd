"""`python -m leaf`, which is also what `torchrun -m leaf` starts."""

from leaf.cli import main

if __name__ == "__main__":
    main()
