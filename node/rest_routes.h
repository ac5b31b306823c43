// What the REST interface serves. The table is the one list of it: requests are answered from it, an unknown
// path is answered with it, docs/laminad.md shows it (a test compares them).
#pragma once

#include <string>
#include <vector>

#include "node/rest_listener.h"
#include "node/views.h"

namespace lamina::node {

struct RestRoute {
  const char* path;
  const char* answers;  // in words, as the docs have it
  RestAnswer (*answer)(const Views&);
  bool probe = false;  // says nothing of any pod: answered to who has no token
};

const std::vector<RestRoute>& RestRoutes();
// The paths of probes.
std::vector<std::string> RestProbes();

// `path` without query. 404, with the paths that there are, for any other.
RestAnswer AnswerRest(const Views& views, const std::string& path);

}  // namespace lamina::node
