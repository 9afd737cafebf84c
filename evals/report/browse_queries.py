"""The ready queries of `evals.report browse`: name -> (title, SQL).

`:run` in a query is the beginning of a run's id, its name or a tag; empty means every run.
"""

RUNS = """(SELECT id FROM runs WHERE id LIKE :run || '%' OR name = :run
               OR id IN (SELECT run_id FROM tags WHERE tag = :run))"""
OF_RUN = f"samples.run_id IN {RUNS}"
PERCENT = "round(100.0 * avg({}), 1)"
PASS1 = PERCENT.format("reward")
TRUNCATED = PERCENT.format("finish_reason = 'length'")
USUAL = "coalesce({})".format(", ".join(f"json_extract(meta, '$.{key}')" for key in ("level", "difficulty", "terms")))
PROBLEM = "run_id, split, step, item, repeat"

QUERIES: dict[str, tuple[str, str]] = {
    "what-ran": (  # not "runs", which is the table
        "What ran, newest first",
        f"""SELECT id AS run, kind, name, method, model, seed, status,
       (SELECT group_concat(tag, ', ') FROM tags WHERE run_id = runs.id) AS tags,
       datetime(started, 'unixepoch') AS started_utc, round((finished - started) / 60, 1) AS minutes, parent
FROM runs WHERE id IN {RUNS} ORDER BY started DESC""",
    ),
    "accuracy-by": (
        "Accuracy and length by level, difficulty or terms, or by another key of meta (such as subject)",
        f"""SELECT run_id, split, step,
       CASE :key WHEN '' THEN {USUAL} ELSE json_extract(meta, '$.' || :key) END AS "group",
       count(DISTINCT item) AS problems, count(*) AS samples, {PASS1} AS "pass1 %",
       round(avg(response_tokens)) AS mean_tokens, {TRUNCATED} AS "truncated %"
FROM samples WHERE {OF_RUN} AND reward IS NOT NULL
GROUP BY run_id, split, step, "group" HAVING "group" IS NOT NULL ORDER BY run_id, split, step, "group\"""",
    ),
    "scores-over-steps": (
        "Accuracy and length of each step of a run: training and its evaluations",
        f"""SELECT run_id, split, step, count(*) AS samples, {PASS1} AS "right %", count(*) - count(reward) AS unscored,
       round(avg(response_tokens), 1) AS mean_tokens, {TRUNCATED} AS "truncated %"
FROM samples WHERE {OF_RUN} GROUP BY run_id, split, step ORDER BY run_id, split, step""",
    ),
    "live-groups": (
        "Live groups over the steps of training, and what the others were",
        f"""SELECT run_id, step, count(*) AS groups, sum(live) AS live, round(100.0 * avg(live), 1) AS "live %",
       sum(NOT live AND best = 1) AS all_right, sum(NOT live AND best = 0) AS all_wrong,
       sum(scorable < 2) AS too_few_scorable
FROM (SELECT run_id, step, item, max(reward) AS best, count(reward) AS scorable,
             coalesce(max(reward) - min(reward) > 1e-6, 0) AS live
      FROM samples WHERE {OF_RUN} AND split = 'train' GROUP BY run_id, step, item)
GROUP BY run_id, step ORDER BY run_id, step""",
    ),
    "wrong": (
        "Wrong answers with how they end (finish: length for those cut off at the token limit, stop; empty: all)",
        f"""SELECT {PROBLEM}, response_tokens, finish_reason, outcome, path, answer, reference,
       substr(response, -600) AS response_end, text AS prompt
FROM samples JOIN prompts ON prompts.id = prompt_id
WHERE {OF_RUN} AND reward < 1 AND :finish IN ('', finish_reason) ORDER BY response_tokens DESC LIMIT 200""",
    ),
    "longest-right": (
        "The longest right answers",
        f"""SELECT {PROBLEM}, response_tokens, answer, response, text AS prompt
FROM samples JOIN prompts ON prompts.id = prompt_id
WHERE {OF_RUN} AND reward = 1 ORDER BY response_tokens DESC LIMIT 100""",
    ),
    "flipped-between-steps": (
        "Problems that flipped between two steps of a run (empty: the first and the last step with the problem)",
        f"""WITH bounds AS (
  SELECT run_id, split, coalesce(nullif(:first, ''), min(step)) AS first, coalesce(nullif(:last, ''), max(step)) AS last
  FROM samples WHERE {OF_RUN} GROUP BY run_id, split),
means AS (SELECT s.run_id, s.split, s.item, s.step, avg(s.reward) AS score, s.prompt_id FROM samples s
  JOIN bounds b ON s.run_id = b.run_id AND s.split = b.split AND s.step IN (b.first + 0, b.last + 0)
  GROUP BY s.run_id, s.split, s.item, s.step)
SELECT a.run_id, a.split, a.item, CASE WHEN z.score > a.score THEN 'now right' ELSE 'now wrong' END AS change,
       a.step AS first_step, round(a.score, 2) AS first_score, z.step AS last_step, round(z.score, 2) AS last_score,
       (SELECT text FROM prompts WHERE prompts.id = a.prompt_id) AS prompt
FROM means a JOIN means z ON z.run_id = a.run_id AND z.split = a.split AND z.item = a.item AND z.step > a.step
WHERE (a.score < 0.5) <> (z.score < 0.5) ORDER BY a.run_id, a.split, change, a.item LIMIT 1000""",
    ),
    "flipped-between-runs": (
        "Problems that flipped between two runs (a, b: beginnings of ids; empty: the two latest of a benchmark)",
        """WITH chosen AS (
  SELECT id AS b, (SELECT id FROM runs a WHERE a.id LIKE :a || '%' AND a.id <> b.id AND a.started <= b.started
                   AND (:a <> '' OR (a.kind = 'eval' AND a.name = b.name)) ORDER BY a.started DESC LIMIT 1) AS a
  FROM runs b WHERE b.id LIKE :b || '%' AND (:b <> '' OR b.kind = 'eval') AND a IS NOT NULL
  ORDER BY b.started DESC LIMIT 1),
means AS (SELECT run_id, item, avg(reward) AS score, min(prompt_id) AS prompt_id FROM samples
  WHERE run_id IN (SELECT a FROM chosen UNION SELECT b FROM chosen) GROUP BY run_id, item)
SELECT x.item, CASE WHEN y.score > x.score THEN 'right in b' ELSE 'right in a' END AS change, x.run_id AS a,
       round(x.score, 2) AS score_a, y.run_id AS b, round(y.score, 2) AS score_b,
       (SELECT text FROM prompts WHERE prompts.id = x.prompt_id) AS prompt
FROM chosen JOIN means x ON x.run_id = chosen.a JOIN means y ON y.run_id = chosen.b AND y.item = x.item
WHERE (x.score < 0.5) <> (y.score < 0.5) ORDER BY change, x.item LIMIT 1000""",
    ),
    "verdicts": (
        "Verdicts, what decided them, and how the completions ended: by themselves or at the token limit",
        f"""SELECT run_id, split, outcome, path, finish_reason, count(*) AS samples,
       round(avg(response_tokens)) AS mean_tokens
FROM samples WHERE {OF_RUN} GROUP BY run_id, split, outcome, path, finish_reason
ORDER BY run_id, split, samples DESC""",
    ),
    "unscored": (
        "Completions without a verdict: grader timeouts and failures, which are in no mean",
        f"""SELECT {PROBLEM}, outcome, path, answer, reference, seconds, substr(response, -600) AS response_end, meta
FROM samples WHERE {OF_RUN} AND reward IS NULL LIMIT 200""",
    ),
    "slowest": (
        "The slowest completions",
        f"""SELECT {PROBLEM}, round(seconds, 2) AS seconds, response_tokens, round(response_tokens / seconds, 1)
       AS tokens_per_second, finish_reason, outcome
FROM samples WHERE {OF_RUN} AND seconds > 0 ORDER BY samples.seconds DESC LIMIT 100""",
    ),
    "tokens-per-solved": (
        "Sampled tokens per problem with a right answer",
        f"""SELECT run_id, split, step, count(DISTINCT item) AS problems,
       count(DISTINCT CASE WHEN reward = 1 THEN item END) AS solved, sum(response_tokens) AS tokens,
       round(1.0 * sum(response_tokens) / nullif(count(DISTINCT CASE WHEN reward = 1 THEN item END), 0)) AS
       tokens_per_solved_problem, round(1.0 * sum(response_tokens) / nullif(sum(reward = 1), 0)) AS
       tokens_per_right_answer
FROM samples WHERE {OF_RUN} GROUP BY run_id, split, step ORDER BY run_id, split, step""",
    ),
    "never-solved": (
        "Problems that no completion solved",
        f"""SELECT split, item, samples, runs, reference, text AS prompt
FROM (SELECT split, item, count(*) AS samples, count(DISTINCT run_id) AS runs, min(reference) AS reference,
             min(prompt_id) AS prompt_id
      FROM samples WHERE {OF_RUN} AND reward IS NOT NULL GROUP BY split, item HAVING max(reward) < 1)
JOIN prompts ON prompts.id = prompt_id ORDER BY samples DESC LIMIT 500""",
    ),
    "common-wrong-answers": (
        "Frequent wrong answers: a doubtful reference, or a trap",
        f"""SELECT split, item, answer, reference, times, runs, text AS prompt
FROM (SELECT split, item, answer, min(reference) AS reference, count(*) AS times, count(DISTINCT run_id) AS runs,
             min(prompt_id) AS prompt_id
      FROM samples WHERE {OF_RUN} AND reward < 1 AND answer IS NOT NULL GROUP BY split, item, answer
      ORDER BY times DESC LIMIT 200)
JOIN prompts ON prompts.id = prompt_id ORDER BY times DESC, item""",
    ),
    "one-problem": (
        "All answers to one problem (item; empty: the one asked most often)",
        f"""SELECT {PROBLEM}, outcome, answer, reference, response_tokens, finish_reason, response
FROM samples WHERE {OF_RUN} AND item = CASE :item WHEN '' THEN
  (SELECT item FROM samples GROUP BY prompt_id ORDER BY count(*) DESC LIMIT 1) ELSE :item END
ORDER BY run_id, split, step, repeat LIMIT 500""",
    ),
    "metric": (
        "A metric over the steps (empty: reward/mean, entropy and pass1)",
        f"""SELECT run_id, name, step, value FROM metrics
WHERE run_id IN {RUNS} AND CASE :metric WHEN '' THEN name IN ('reward/mean', 'entropy', 'pass1') ELSE name = :metric END
ORDER BY run_id, name, step""",
    ),
}
