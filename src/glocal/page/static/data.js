/** The numbers of the page: `contract.py` says what they are, and how they are packed. */

/** Return the integers of an array in base64: bytes where its scale is 0, else 16 bits. */
function integers(array) {
  const bytes = Uint8Array.from(atob(array.data), (sign) => sign.charCodeAt(0));
  return array.scale ? new Int16Array(bytes.buffer) : bytes;
}

/** Numbers in rows. */
export class Matrix {
  constructor(array) {
    this.shape = array.shape;
    this.scale = array.scale;
    this.values = integers(array);
    this.width = array.shape.at(-1);
  }

  /** A row; where the scale is 0, it is divided by its sum. */
  row(number) {
    const values = this.values.subarray(number * this.width, (number + 1) * this.width);
    const scale = this.scale || 1 / values.reduce((sum, value) => sum + value, 0);
    return Float32Array.from(values, (value) => value * scale);
  }
}

/** One kind of attention. */
export class Attention {
  constructor(attention) {
    Object.assign(this, attention);
    this.parts = new Map();
    this.localHeads = new Map();
    this.add(attention);
  }

  /** Take over layers that were asked for later. */
  add(attention) {
    const weights = new Matrix(attention.weights);
    attention.layers.forEach((layer, place) => {
      this.parts.set(layer, { weights, place, patterns: patternsOf(attention, place) });
      this.localHeads.set(layer, attention.local_heads[place]);
    });
    this.layers = [...this.parts.keys()].sort((a, b) => a - b);
  }

  /** Whether a head is a convolution. */
  isLocal(layer, head) {
    return head >= this.all_heads - this.localHeads.get(layer);
  }

  /** What a head gives to each pattern, by its name; null of an image. */
  shares(layer, head) {
    const found = this.parts.get(layer).patterns;
    return found && Object.fromEntries(Object.entries(found).map(([name, heads]) => [name, heads[head]]));
  }

  /** The weights of a query in one head; they sum to one. */
  row(layer, head, query) {
    const { weights, place } = this.parts.get(layer);
    return weights.row((place * this.heads + head) * this.queries.length + query);
  }

  /** The mean of a layer's heads. */
  mean(layer, query) {
    const sum = new Float32Array(this.keys.length);
    for (let head = 0; head < this.heads; head++) {
      this.row(layer, head, query).forEach((weight, key) => (sum[key] += weight / this.heads));
    }
    return sum;
  }

  /** What of each first token is in a last one. */
  rolledOut(query) {
    this.rollouts ??= new Matrix(this.rollout);
    return this.rollouts.row(query);
  }

  /** The weights of a query by what is chosen on the page. */
  chosen(state, query) {
    if (state.mode === "rollout" && this.rollout) return this.rolledOut(query);
    return state.mode === "head" ? this.row(state.layer, state.head, query) : this.mean(state.layer, query);
  }
}

function patternsOf(attention, place) {
  if (!attention.patterns) return null;
  return Object.fromEntries(Object.entries(attention.patterns).map(([name, layers]) => [name, layers[place]]));
}

/** Queries, keys and values of a layer. */
export class Vectors {
  constructor(vectors) {
    for (const name of ["queries", "keys", "values"]) this[name] = new Matrix(vectors[name]);
    this.heads = vectors.queries.shape[0];
  }

  /** The vector of a token in a head: `name` is queries, keys or values. */
  vector(name, head, token) {
    const matrix = this[name];
    return matrix.row(head * matrix.shape[1] + token);
  }
}

/** q·k of two vectors. */
export function dot(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

/** eˣ of each, divided by their sum. */
export function softmax(scores) {
  const most = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** The numbers of the greatest values, in the order of the row. */
export function greatest(values, count) {
  const order = [...values.keys()].sort((a, b) => values[b] - values[a]).slice(0, count);
  return order.sort((a, b) => a - b);
}
