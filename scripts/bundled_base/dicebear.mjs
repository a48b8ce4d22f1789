// Draws DiceBear characters (designs CC0) as SVG, and notes which attributes were picked for each.
// usage: node dicebear.mjs NPM_FOLDER OUTPUT_FOLDER COUNT_PER_STYLE
import fs from 'fs';
import path from 'path';
import { pathToFileURL } from 'url';

const [npmFolder, output, countText] = process.argv.slice(2);
const count = Number(countText);
const load = (name) =>
  import(pathToFileURL(path.join(path.resolve(npmFolder), 'node_modules', name, 'lib/index.js')).href);
const { createAvatar } = await load('@dicebear/core');
const collection = await load('@dicebear/collection');

// Rarer extras than DiceBear's defaults would leave words that the network never learns.
const options = {
  pixelArt: { glassesProbability: 30, hatProbability: 20, beardProbability: 15, accessoriesProbability: 0 },
  openPeeps: { accessoriesProbability: 30, facialHairProbability: 25, maskProbability: 4 },
};

fs.mkdirSync(output, { recursive: true });
const notes = [];
for (const [style, chances] of Object.entries(options)) {
  for (let index = 0; index < count; index += 1) {
    const avatar = createAvatar(collection[style], { seed: `tiny-${style}-${index}`, size: 256, ...chances });
    const { svg, extra } = avatar.toJson();
    const file = `${style}_${String(index).padStart(4, '0')}.svg`;
    fs.writeFileSync(path.join(output, file), svg);
    notes.push({ file, style, ...extra });
  }
}
fs.writeFileSync(path.join(output, 'notes.json'), JSON.stringify(notes));
console.log(`drew ${notes.length} characters`);
