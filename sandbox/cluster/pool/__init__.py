"""A pool of prepared clusters that stand still: leased in a second or two, instead of made."""
