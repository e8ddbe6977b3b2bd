// Ctrl+Enter, or Cmd+Enter, presses the main button of the tab that is open; Escape its Cancel.
document.addEventListener("keydown", (event) => {
  const wanted =
    event.key === "Enter" && (event.ctrlKey || event.metaKey)
      ? "main-button"
      : event.key === "Escape"
        ? "cancel-button"
        : null;
  if (wanted === null) return;
  const button = [...document.querySelectorAll(`button.${wanted}`)].find(
    (each) => each.offsetParent !== null && !each.disabled,
  );
  if (button === undefined) return;
  event.preventDefault();
  // What was typed last is sent with the press, as the field tells of it when it loses the focus.
  const field = document.activeElement;
  if (field instanceof HTMLElement && field !== button) field.dispatchEvent(new Event("change", { bubbles: true }));
  button.click();
});
