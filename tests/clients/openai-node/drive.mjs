// What does openai-node get? One order a line in, one answer a line out.
import { createInterface } from "node:readline";

import OpenAI, { OpenAIError } from "openai";

async function answer({ base_url, key, order, timeout_seconds }) {
  const client = new OpenAI({
    baseURL: `${base_url}/v1`,
    apiKey: key,
    // Left out, and not undefined: its own default is what most people run with.
    ...(timeout_seconds && { timeout: timeout_seconds * 1000 }),
  });
  try {
    const made = await client.images.generate(order);
    return { pictures: made.data.map(({ url, b64_json }) => (url ? { url } : { b64_json })) };
  } catch (error) {
    if (!(error instanceof OpenAIError)) throw error;
    return { error: { name: error.constructor.name, status: error.status ?? null, message: error.message } };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await answer(JSON.parse(line))));
}
