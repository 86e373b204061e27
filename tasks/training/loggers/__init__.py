"""Where figures of trainings go beside their record: one file for each place, which says what it is in ``LOGGER``."""
