"""The explorer of an HTML report: its data, computed from stored scores, and its panels; no torch.

:mod:`~oodcli.reporting.explorer.payload` has the records that the page reads,
:mod:`~oodcli.reporting.explorer.build` computes them, ``web/`` has the style and the scripts, and
:mod:`~oodcli.reporting.explorer.assets` puts both into the form in which a page embeds them.
"""
