"""Slides that need no network: their scripts are in node_modules, beside the page."""

c = get_config()  # noqa: F821 - Jupyter gives it
c.SlidesExporter.reveal_url_prefix = "node_modules/reveal.js"
c.SlidesExporter.mathjax_url = "node_modules/mathjax/MathJax.js?config=TeX-AMS_CHTML-full"
c.SlidesExporter.require_js_url = "node_modules/requirejs/require.js"
c.SlidesExporter.jquery_url = "node_modules/jquery/dist/jquery.min.js"
