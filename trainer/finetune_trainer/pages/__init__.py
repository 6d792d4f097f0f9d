"""The look that the HTML pages share: one style, the drawing of charts, and the engine of the templates."""
