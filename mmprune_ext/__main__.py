"""``python -m mmprune_ext COMMAND ...`` is the console command ``mmprune``."""

from mmprune_ext.cli.main import main

if __name__ == '__main__':
    main()
