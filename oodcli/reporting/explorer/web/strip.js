// The images that the chosen method judges most wrongly, and those that most methods reject.

/** @returns {ImageStrip | undefined} */
function shownStrip() {
  return payload.images?.strips.find((each) => each.network === state.network);
}

definePanel({
  id: "strip",
  title: "Images",
  wanted: () => (payload.images?.strips.length ?? 0) > 0,
  build(body) {
    const draw = () => {
      const strip = shownStrip();
      body.replaceChildren(...(strip ? stripLists(strip) : [element("p", {}, `The images of ${shownNetwork().name} are not in this page.`)]));
    };
    draw();
    return (changed) => {
      if (["network", "method", "set", "threshold"].some((name) => changed.has(/** @type {keyof State} */ (name)))) draw();
    };
  },
});

const STRIP_LISTED = 16;

/**
 * @param {ImageStrip} strip
 * @returns {HTMLElement[]}
 */
function stripLists(strip) {
  const column = strip.methods.indexOf(state.method);
  const set = strip.sets.findIndex((each) => each.name === state.set);
  const idName = need(strip.sets[0]).name;
  const nId = need(strip.sets[0]).n;
  /** @type {HTMLElement[]} */
  const lists = [element("p", { class: "meaning" },
    "Which images are listed does not depend on the threshold; accepted and rejected are at the chosen one.")];
  const ofSet = column < 0 || set < 1 ? undefined : strip.ood_images[column]?.[set - 1];
  if (ofSet) {
    lists.push(imageList(`Most ID-like images of ${state.set} (OOD) by ${labelOf(state.method)}: ${outOf(numbers(ofSet), need(strip.sets[set]).n)}`, strip, numbers(ofSet), column));
  } else {
    lists.push(element("p", {}, `The images of ${state.set} were not found again.`));
  }
  const ofId = strip.id_images[column];
  if (ofId) lists.push(imageList(`Most OOD-like images of ${idName} (ID) by ${labelOf(state.method)}: ${outOf(numbers(ofId), nId)}`, strip, numbers(ofId), column));
  const counts = numbers(strip.rejected_by);
  const odd = numbers(strip.odd);
  if (odd.length) {
    lists.push(imageList(`Odd images of ${idName} (ID): the ${counted(odd.length)} that most methods reject, each at 95 % TPR; at least half of the methods reject ${counted(strip.n_odd)} of ${counted(nId)}`, strip, odd, -1,
      (place) => `${need(counts[place])} of ${strip.methods.length}`));
  }
  return lists;
}

/**
 * @param {ArrayLike<number>} listed
 * @param {number} all
 */
function outOf(listed, all) {
  return `${counted(listed.length)} of ${counted(all)}`;
}

/**
 * @param {string} heading
 * @param {ImageStrip} strip
 * @param {ArrayLike<number>} places
 * @param {number} column The method whose verdicts are shown; -1 for none.
 * @param {(place: number) => string} [note]
 * @returns {HTMLElement}
 */
function imageList(heading, strip, places, column, note) {
  const images = Array.from(places, (at) => imageOfStrip(strip, at));
  const scores = numbers(strip.scores);
  const item = (/** @type {ShownImage} */ image, /** @type {number} */ place) => {
    const score = column < 0 ? NaN : need(scores[image.number * strip.methods.length + column]);
    const facts = [];
    if (note) facts.push(note(place));
    if (column >= 0) {
      facts.push(String(Number(score.toPrecision(4))), score >= Math.fround(state.threshold) ? "accepted" : "rejected");
    }
    return imageButton(image, facts, () => openImage(images, place));
  };
  const title = element("h3", {}, heading);
  const list = element("ul", { class: "thumbs" }, ...images.slice(0, STRIP_LISTED).map(item));
  arrowsMoveFocus(list);
  const left = images.length - STRIP_LISTED;
  if (left <= 0) return element("div", { class: "image-list" }, title, list);
  const more = element("button", { type: "button", class: "more" }, `Show ${counted(left)} more`);
  more.addEventListener("click", () => {
    list.append(...images.slice(STRIP_LISTED).map((image, at) => item(image, STRIP_LISTED + at)));
    more.remove();
    list.querySelectorAll("button")[STRIP_LISTED]?.focus();
  });
  return element("div", { class: "image-list" }, title, list, more);
}
