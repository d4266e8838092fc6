"""Pure functions of arrays and tidy tables: measures, statistics, figures."""
