// The openai package for node.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 0 });
const models = [];
for await (const entry of client.models.list()) models.push(entry.id);
assert.equal(models.length, 1);
const [model] = models;

const prompt = { model, prompt: "高血压要注意", n: 2, max_tokens: 8, seed: 1 };
const whole = await client.completions.create(prompt);
const texts = ["", ""];
for await (const chunk of await client.completions.create({ ...prompt, stream: true }))
  for (const choice of chunk.choices) texts[choice.index] += choice.text;
assert.deepEqual(texts, whole.choices.map((choice) => choice.text));
console.log("ok: completions");

const asked = { model, messages: [{ role: "user", content: "失眠怎么办？" }], seed: 1 };
const answer = await client.chat.completions.create(asked);
assert.ok(answer.choices[0].message.content);
assert.equal(answer.choices[0].finish_reason, "stop");
let text = "";
let usage = null;
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } })) {
  for (const choice of chunk.choices) text += choice.delta.content ?? "";
  usage = chunk.usage;
}
assert.equal(text, answer.choices[0].message.content);
assert.deepEqual(usage, answer.usage);
const accumulated = await client.chat.completions.stream(asked).finalContent();
assert.equal(accumulated, text);
console.log("ok: chat");

const vectors = await client.embeddings.create({ model, input: ["高血压", "hello"] });
assert.equal(vectors.data.length, 2);
const length = vectors.data[0].embedding.reduce((sum, x) => sum + x * x, 0);
assert.ok(Math.abs(length - 1) < 1e-4);
console.log("ok: embeddings");

await assert.rejects(client.chat.completions.create({ ...asked, model: "none" }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ ...asked, functions: [{ name: "f" }] }), (fault) => {
  assert.ok(fault instanceof OpenAI.BadRequestError);
  assert.equal(fault.param, "functions");
  return true;
});
const stranger = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "wrong", maxRetries: 0 });
await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
console.log("ok: errors");
