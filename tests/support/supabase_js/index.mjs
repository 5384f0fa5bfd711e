// What pages of docs/ use of @supabase/supabase-js, so that their snippets run without a package
// registry. Sends what version 2.119.1 was seen to send (docs/decisions/0121), and nothing else:
// a call that is not here is an error, never a guess.

export function createClient(url, key, options = {}) {
  const ask = async (path, { method = 'GET', token, body } = {}) => {
    const answer = await fetch(url + path, {
      method,
      headers: {
        apikey: key,
        authorization: token ? `Bearer ${token}` : `Bearer ${key}`,
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...options.global?.headers,
      },
      body: body === undefined ? undefined : JSON.stringify(body),
    })
    const value = await answer.json()
    return answer.ok ? { data: value, error: null } : { data: null, error: value }
  }

  return {
    rpc: (name, args = {}) => ask(`/rest/v1/rpc/${name}`, { method: 'POST', body: args }),
    from: (table) => ({ select: (columns) => new Rows(ask, table, columns) }),
    auth: {
      getUser: async (token) => {
        const { data, error } = await ask('/auth/v1/user', { token })
        return { data: { user: data }, error }
      },
    },
  }
}

class Rows {
  #ask
  #table
  #query

  constructor(ask, table, columns) {
    this.#ask = ask
    this.#table = table
    this.#query = new URLSearchParams({ select: columns.replace(/\s/g, '') })
  }

  eq(column, value) {
    this.#query.set(column, `eq.${value}`)
    return this
  }

  order(column, { ascending = true } = {}) {
    this.#query.set('order', `${column}.${ascending ? 'asc' : 'desc'}`)
    return this
  }

  limit(count) {
    this.#query.set('limit', count)
    return this
  }

  async maybeSingle() {
    const { data, error } = await this.#ask(`/rest/v1/${this.#table}?${this.#query}`)
    if (error || data.length < 2) return { data: data?.[0] ?? null, error }
    return { data: null, error: { code: 'PGRST116', details: `The result contains ${data.length} rows` } }
  }
}
