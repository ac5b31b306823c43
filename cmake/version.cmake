# Run at each build: cmake -DSOURCE=… -DVERSION=… -DOUTPUT=… -P version.cmake. Writes the source that defines
# lamina::Version(), with git's revision where SOURCE is the top of a work tree; a file that says the same stays untouched.
set(revision "")
execute_process(COMMAND git -C ${SOURCE} rev-parse --show-prefix --short=8 HEAD
  OUTPUT_VARIABLE answer ERROR_QUIET RESULT_VARIABLE result)
if(result EQUAL 0 AND answer MATCHES "^\n([0-9a-f]+)\n$")
  set(revision "+g${CMAKE_MATCH_1}")
endif()
file(CONFIGURE OUTPUT ${OUTPUT} @ONLY CONTENT [[
#include "base/version.h"

namespace lamina {

const char* Version() { return "@VERSION@@revision@"; }

}  // namespace lamina
]])
