"""What every dashboard of the chart must keep to, as a pure function of its JSON."""
import re

UNITS = {"short", "percentunit", "bytes", "s", "ops"}
MATCHERS = ('job=~"$job"', 'instance=~"$instance"')
RANGE = "$__rate_interval"


def panels_of(dashboard):
    return [p for p in dashboard["panels"] if p["type"] != "row"]


def expressions(dashboard):
    """[(panel's title, expression)]"""
    return [(p["title"], t["expr"]) for p in panels_of(dashboard) for t in p["targets"]]


def concrete(expression):
    """As Grafana asks it, with everything selected."""
    return expression.replace("$job", ".+").replace("$instance", ".+").replace(RANGE, "5m")


def family_of(series, families):
    """The family whose series bears this name; None when there is none."""
    for suffix in ("_bucket", "_sum", "_count"):
        base = series.removesuffix(suffix)
        if base != series and families.get(base) == "histogram":
            return base
    return series if families.get(series) in ("gauge", "counter") else None


def families_of(exposition):
    """{family: type} of a scrape's text."""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", exposition, re.M))


def violations(dashboard, families):
    out = []

    def expect(holds, sentence):
        if not holds:
            out.append(sentence)

    expect(dashboard.get("editable") is False, "it is editable")
    expect(dashboard.get("uid") and dashboard.get("title"), "it has no uid or title")
    variables = {v["name"]: v for v in dashboard["templating"]["list"]}
    expect(variables.get("datasource", {}).get("type") == "datasource", "no variable for the data source")
    for name in ("job", "instance"):
        variable = variables.get(name, {})
        expect(variable.get("type") == "query", f"no variable {name}")
        expect(variable.get("datasource", {}).get("uid") == "${datasource}", f"variable {name}: fixed data source")

    ids = [p["id"] for p in dashboard["panels"]]
    expect(len(ids) == len(set(ids)), "panels share an id")
    titles = [p.get("title") for p in dashboard["panels"]]
    expect(len(titles) == len(set(titles)), "panels share a title")
    cells = set()
    for panel in dashboard["panels"]:
        g = panel["gridPos"]
        mine = {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
        expect(g["x"] + g["w"] <= 24 and not mine & cells, f"panel {panel.get('title')}: overlaps or is too wide")
        cells |= mine

    for panel in panels_of(dashboard):
        where = f"panel {panel.get('title')!r}"
        expect(panel.get("title"), f"{where}: no title")
        expect(panel.get("description", "").endswith("."), f"{where}: no description in sentences")
        expect(panel["fieldConfig"]["defaults"].get("unit") in UNITS, f"{where}: no unit of {sorted(UNITS)}")
        expect(panel.get("targets"), f"{where}: asks nothing")
        for target in panel.get("targets", []):
            expr = target["expr"]
            expect(target.get("datasource", {}).get("uid") == "${datasource}", f"{where}: fixed data source")
            expect(set(re.findall(r"\[([^\]]*)\]", expr)) <= {RANGE}, f"{where}: a fixed range in {expr}")
            for series, matchers in re.findall(r"\b(lamina_\w+)(\{[^}]*\})?", expr):
                expect(all(m in matchers for m in MATCHERS), f"{where}: {series} without job and instance")
                family = family_of(series, families)
                expect(family, f"{where}: laminad has no series {series}")
                if family and families[family] != "gauge":
                    expect(re.search(rf"\brate\({series}\{{", expr), f"{where}: {series} without rate()")
    return out


# A change that breaks a rule, and a word of the sentence that must follow.
BREAKS = [
    (lambda d: d.update(editable=True), "editable"),
    (lambda d: d["templating"]["list"].pop(0), "data source"),
    (lambda d: d["templating"]["list"].pop(1), "variable job"),
    (lambda d: d["templating"]["list"][2]["datasource"].update(uid="abc"), "variable instance"),
    (lambda d: panels_of(d)[0].pop("title"), "no title"),
    (lambda d: panels_of(d)[1].update(description=""), "description"),
    (lambda d: panels_of(d)[2]["fieldConfig"]["defaults"].pop("unit"), "unit"),
    (lambda d: panels_of(d)[3].update(id=panels_of(d)[4]["id"]), "share an id"),
    (lambda d: panels_of(d)[0]["gridPos"].update(w=20), "overlaps"),
    (lambda d: panels_of(d)[0]["targets"][0]["datasource"].update(uid="abc"), "fixed data source"),
    (lambda d: panels_of(d)[0]["targets"][0].update(expr="lamina_build_info"), "without job"),
    (lambda d: panels_of(d)[0]["targets"][0].update(expr='lamina_pods{job=~"$job", instance=~"$instance"}'),
     "no series lamina_pods"),
    (lambda d: panels_of(d)[0]["targets"][0].update(
        expr='rate(lamina_layer_reuses_total{job=~"$job", instance=~"$instance"}[5m])'), "fixed range"),
    (lambda d: panels_of(d)[0]["targets"][0].update(
        expr='lamina_layer_reuses_total{job=~"$job", instance=~"$instance"}'), "without rate"),
]
