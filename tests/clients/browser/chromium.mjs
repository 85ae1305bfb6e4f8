// Which Chromium is driven? `CHROMIUM_PATH`, or an installed one, or the one that comes with npm, unpacked beside this.
//
// As a program, which npm runs after it has installed: unpacks that one where it will be needed.
import { accessSync, constants, mkdirSync } from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

const INSTALLED = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const UNPACKED = fileURLToPath(new URL("chromium", import.meta.url));

function isProgram(path) {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

export async function chromiumPath() {
  if (process.env.CHROMIUM_PATH) return process.env.CHROMIUM_PATH;
  const folders = (process.env.PATH ?? "").split(delimiter);
  const found = folders.flatMap((folder) => INSTALLED.map((name) => join(folder, name))).find(isProgram);
  if (found) return found;
  mkdirSync(UNPACKED, { recursive: true });
  const { default: chromium } = await import("@sparticuz/chromium");
  // It unpacks into the folder for temporary files, and takes whatever Chromium is there for its own.
  const temporary = process.env.TMPDIR;
  process.env.TMPDIR = UNPACKED;
  const path = await chromium.executablePath();
  if (temporary === undefined) delete process.env.TMPDIR;
  else process.env.TMPDIR = temporary;
  return path;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await chromiumPath();
