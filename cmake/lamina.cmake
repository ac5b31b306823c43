# The project's build vocabulary: one library per folder, one program per main, one test executable per folder.

add_custom_target(unit_tests)
add_custom_target(fuzzers)

option(LAMINA_FUZZ "build the libFuzzer programs (needs clang)" OFF)
set(LAMINA_SANITIZE "" CACHE STRING "sanitizers, as -fsanitize takes them")
option(LAMINA_COVERAGE "instrument for gcov" OFF)

find_program(CCACHE ccache)
if(CCACHE)
  # The sloppiness is what ccache wants in order to cache what uses a precompiled header; no source uses __TIME__. The
  # header itself differs from one build folder to the next: lamina_precompiled_sum says what it holds.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros CCACHE_PCH_EXTSUM=1
      ${CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE})
endif()

find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
pkg_check_modules(ABSL REQUIRED absl_status absl_statusor absl_strings)

add_library(lamina_flags INTERFACE)
target_include_directories(lamina_flags INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
# gcc 12 sees writes out of bounds in appending to a std::string of known size (its bug 105329), where there are none.
target_compile_options(lamina_flags INTERFACE -Wall -Wextra -Werror -Wno-unused-parameter $<$<CXX_COMPILER_ID:GNU>:-Wno-array-bounds>
                                              -fno-omit-frame-pointer)
target_link_libraries(lamina_flags INTERFACE Threads::Threads)
# Debian's absl headers compile with NDEBUG-dependent inline code only in containers, which are not used here.
if(LAMINA_SANITIZE)
  target_link_options(lamina_flags INTERFACE -fsanitize=${LAMINA_SANITIZE})
  set(LAMINA_SANITIZE_OPTIONS -fsanitize=${LAMINA_SANITIZE} -fno-sanitize-recover=all)
  if(LAMINA_SANITIZE MATCHES thread)
    # protobuf's headers give map fields two members more under TSan, which the packaged library does not know: neither may
    # its users nor the generated messages.
    list(APPEND LAMINA_SANITIZE_OPTIONS -U__SANITIZE_THREAD__ -D_GLIBCXX_TSAN=1)
    # gcc 12's bug that is named below comes as this warning too where it instruments for TSan.
    list(APPEND LAMINA_SANITIZE_OPTIONS -Wno-stringop-overflow)
  endif()
  target_compile_options(lamina_flags INTERFACE ${LAMINA_SANITIZE_OPTIONS})
endif()
if(LAMINA_COVERAGE)
  target_compile_options(lamina_flags INTERFACE --coverage)
  target_link_options(lamina_flags INTERFACE --coverage)
endif()

# absl through pkg-config: a static program then takes the .a files, a dynamic one the .so files.
add_library(lamina_absl INTERFACE)
target_link_libraries(lamina_absl INTERFACE ${ABSL_STATIC_LDFLAGS})
# The lite messages need exactly one protobuf runtime per program: the program says which with LAMINA_STATIC.
add_library(lamina_protobuf INTERFACE)
target_link_libraries(lamina_protobuf INTERFACE
  $<IF:$<BOOL:$<TARGET_PROPERTY:LAMINA_STATIC>>,-lprotobuf-lite,-lprotobuf>)
add_library(lamina_fmt STATIC ${CMAKE_CURRENT_LIST_DIR}/fmt.cc)
target_link_libraries(lamina_fmt PRIVATE lamina_flags)

# What most sources include is parsed once for a build: two thirds of a test's compilation were its headers. Lamina's own
# libraries take it in the sanitizers' builds only: the release build shows whether each source includes what it uses.
set(LAMINA_COMMON_HEADERS <fmt/format.h> <absl/status/statusor.h> <algorithm> <atomic> <chrono> <condition_variable>
    <filesystem> <functional> <map> <memory> <mutex> <optional> <string> <string_view> <thread> <vector>)
# Writes beside the precompiled header what ccache takes for its content: of the headers' text, the compiler, the flags.
function(lamina_precompiled_sum target)
  list(TRANSFORM ARGN PREPEND "#include " OUTPUT_VARIABLE includes)
  list(JOIN includes "\n" includes)
  string(TOUPPER "${CMAKE_BUILD_TYPE}" type)
  separate_arguments(flags UNIX_COMMAND "${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${type}}")
  list(APPEND flags ${LAMINA_SANITIZE_OPTIONS})
  set(folder ${PROJECT_BINARY_DIR}/CMakeFiles/${target}.dir)
  file(WRITE ${folder}/sum.cc "${includes}\n")
  execute_process(COMMAND ${CMAKE_CXX_COMPILER} -std=c++20 ${flags} -E -P ${folder}/sum.cc
                  OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
  string(SHA256 sum "${text}")
  file(WRITE ${folder}/cmake_pch.hxx.gch.sum "${CMAKE_CXX_COMPILER_VERSION} ${flags} ${sum}\n")
endfunction()

if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)  # for ccache
  foreach(users test product)
    add_library(lamina_${users}_headers OBJECT EXCLUDE_FROM_ALL ${CMAKE_CURRENT_LIST_DIR}/precompiled.cc)
    target_link_libraries(lamina_${users}_headers PRIVATE lamina_flags)
  endforeach()
  set(product_headers ${LAMINA_COMMON_HEADERS})
  set(test_headers ${LAMINA_COMMON_HEADERS} <gmock/gmock.h> <gtest/gtest.h>)
  foreach(users test product)
    target_precompile_headers(lamina_${users}_headers PRIVATE ${${users}_headers})
    lamina_precompiled_sum(lamina_${users}_headers ${${users}_headers})
  endforeach()
endif()
# lamina_precompiled(target test|product)
function(lamina_precompiled target users)
  if(TARGET lamina_${users}_headers AND (users STREQUAL "test" OR LAMINA_SANITIZE))
    target_precompile_headers(${target} REUSE_FROM lamina_${users}_headers)
  endif()
endfunction()

# lamina_library(name SOURCES a.cc … DEPS lamina_base …): static library lamina_<name>.
function(lamina_library name)
  cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
  add_library(lamina_${name} STATIC ${A_SOURCES})
  target_link_libraries(lamina_${name} PUBLIC lamina_flags ${A_DEPS} lamina_absl lamina_fmt)
  lamina_precompiled(lamina_${name} product)
endfunction()

# lamina_program(name [STATIC] SOURCES main.cc DEPS …): program <name>, put in <build>/bin.
function(lamina_program name)
  cmake_parse_arguments(A "STATIC" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
  target_link_libraries(${name} PRIVATE lamina_flags ${A_DEPS})
  if(A_STATIC AND NOT LAMINA_SANITIZE AND NOT LAMINA_COVERAGE)
    set_target_properties(${name} PROPERTIES LAMINA_STATIC ON)
    target_link_options(${name} PRIVATE -static -Wl,--gc-sections)
  endif()
endfunction()

# lamina_test(name RING unit|integration|e2e SOURCES … DEPS … [WORKDIR]): GoogleTest program, one ctest entry, label = ring.
function(lamina_test name)
  cmake_parse_arguments(A "" "RING;TIMEOUT" "SOURCES;DEPS" ${ARGN})
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 600)
  endif()
  add_executable(${name} ${A_SOURCES})
  target_link_libraries(${name} PRIVATE lamina_flags ${A_DEPS} gmock gtest gtest_main)
  lamina_precompiled(${name} test)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  if(A_RING STREQUAL "unit")
    add_dependencies(unit_tests ${name})
  endif()
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS ${A_RING} TIMEOUT ${A_TIMEOUT})
endfunction()

# lamina_bench(name SOURCES … DEPS …): google-benchmark program in <build>/bench.
function(lamina_bench name)
  cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  target_link_libraries(${name} PRIVATE lamina_flags ${A_DEPS} benchmark)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bench)
endfunction()

# lamina_fuzzer(name SOURCES … DEPS …): libFuzzer program in <build>/fuzz; only with clang and LAMINA_FUZZ.
function(lamina_fuzzer name)
  if(NOT LAMINA_FUZZ)
    return()
  endif()
  cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  target_link_libraries(${name} PRIVATE lamina_flags ${A_DEPS})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/fuzz)
  add_dependencies(fuzzers ${name})
endfunction()

# lamina_proto(name PROTOS a.proto … [GRPC]): library lamina_<name> of the generated messages; headers as "proto/….pb.h".
function(lamina_proto name)
  cmake_parse_arguments(A "GRPC" "" "PROTOS" ${ARGN})
  set(generated)
  foreach(proto ${A_PROTOS})
    string(REGEX REPLACE "\\.proto$" "" stem ${proto})
    set(out ${PROJECT_BINARY_DIR}/proto/${stem})
    get_filename_component(out_dir ${out} DIRECTORY)
    file(MAKE_DIRECTORY ${out_dir})  # make_directory at configure time: protoc does not
    set(files ${out}.pb.cc ${out}.pb.h)
    set(args)
    if(A_GRPC)
      list(APPEND files ${out}.grpc.pb.cc ${out}.grpc.pb.h)
      set(args --grpc_out=${PROJECT_BINARY_DIR} --plugin=protoc-gen-grpc=/usr/bin/grpc_cpp_plugin)
    endif()
    add_custom_command(OUTPUT ${files}
      COMMAND protoc -I ${PROJECT_SOURCE_DIR} --cpp_out=${PROJECT_BINARY_DIR} ${args} proto/${proto}
      WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
      DEPENDS ${PROJECT_SOURCE_DIR}/proto/${proto} VERBATIM)
    foreach(f ${files})
      if(f MATCHES "\\.cc$")
        list(APPEND generated ${f})
      endif()
    endforeach()
  endforeach()
  add_library(lamina_${name} STATIC ${generated})
  target_include_directories(lamina_${name} SYSTEM PUBLIC ${PROJECT_BINARY_DIR})
  target_link_libraries(lamina_${name} PUBLIC Threads::Threads lamina_protobuf)
  if(LAMINA_SANITIZE)
    target_compile_options(lamina_${name} PRIVATE ${LAMINA_SANITIZE_OPTIONS})
  endif()
  if(A_GRPC)
    target_link_libraries(lamina_${name} PUBLIC -lgrpc++ -lgrpc -lgpr)
  endif()
endfunction()
