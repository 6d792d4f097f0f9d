# What process 1 of the fabric and of a node does once its world is made: start services by name, and reap what ends.
# A service is a file in FOLDER; who writes its name to the FIFO FOLDER/start gets it started, and FOLDER/NAME.pid.

launch() { # FOLDER NAME
  bash "$1/$2" 3>&- &
  echo $! >"$1/.$2.pid" && mv "$1/.$2.pid" "$1/$2.pid"
}

serve() { # FOLDER
  rm -f "$1/start"
  mkfifo "$1/start"
  exec 3<>"$1/start" # open for writing too: it never comes to its end
  while read -r -u 3 name; do launch "$1" "$name"; done
}
