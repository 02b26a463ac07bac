"""What a person or a CI system sees of a run: terminal, HTML, JSON, JUnit, GitHub.

Everything shown comes from `Results` and the timeline. Import what you need from its module: the
charts' library is then only loaded where a chart is drawn.
"""
