(() => {
  if (window.parent === window) return;
  document.body.classList.add("framed");
  let outer, frame;
  try { outer = window.parent.document.body; frame = window.frameElement; } catch (error) { return; }
  const follow = () => { for (const name of ["quarto-dark", "quarto-light"]) document.body.classList.toggle(name, outer.classList.contains(name)); };
  const fit = () => { frame.style.height = document.body.offsetHeight + "px"; };
  new MutationObserver(follow).observe(outer, {attributes: true, attributeFilter: ["class"]});
  new ResizeObserver(fit).observe(document.body);
  follow();
  fit();
})();
